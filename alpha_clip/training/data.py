"""What a training set yields, and how it becomes batches in an order that a resumed run repeats."""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from ..model import FOREGROUND
from ..transforms import Preprocess
from .config import TrainConfig
from .loss import Labels
from .pictures import BadSample, Picture
from .views import Sample, views

MASK_GRID = 32  # masks are compared at this size


@dataclass(frozen=True)
class Batch:
    """B samples. They have P texts in all, a row of `labels` each, and those are of U different `texts`."""

    image: Tensor  # (B, 3, n, n)
    alpha: Tensor  # (B, 1, n, n)
    mask: Tensor  # (B, g) in [0, 1]: the masks, made small and flat
    whole: Tensor  # (B,) bool: this sample is a whole image
    index: Tensor  # (B,) int64, which item of the data set it is of
    texts: list[str]
    sample: Tensor  # (P,) int64, below B, ascending
    text: Tensor  # (P,) int64, below U
    labels: Labels
    rivals: Tensor  # (B, U) bool
    bad: list[BadSample]  # what could not be read, and is not in it

    def __len__(self) -> int:
        return len(self.image)

    @property
    def first_row(self) -> Tensor:
        """(B,) the row of each sample's first text."""
        return torch.searchsorted(self.sample, torch.arange(len(self)))


class Dataset(Protocol):
    """A map-style data set whose item is a `Picture`, one `Sample`, or the samples of one picture."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Picture | Sample | Sequence[Sample]: ...


@dataclass(frozen=True)
class Item:
    """What an item of the data set came to."""

    index: int
    samples: Sequence[Sample]
    bad: BadSample | None = None


def normalised(text: str) -> str:
    """Texts that differ only in case or spaces count as equal."""
    return " ".join(text.lower().split())


def collate(items: Sequence[Item], size: int = 1) -> Batch:
    """Items to one batch, in their order; `size` is that of the pictures, should none be left."""
    samples = [sample for item in items for sample in item.samples]
    index = torch.tensor([item.index for item in items for _ in item.samples], dtype=torch.int64)
    whole = torch.tensor([s.alpha is None for s in samples], dtype=torch.bool)
    image = torch.stack([s.image for s in samples]) if samples else torch.zeros(0, 3, size, size)
    foreground = image.new_full((1, *image.shape[2:]), FOREGROUND)
    alpha = torch.stack([foreground if s.alpha is None else s.alpha for s in samples]) if samples else image[:, :1]

    number: dict[str, int] = {}
    rows: list[tuple[int, int, int, bool, float]] = []  # sample, text, the sample's other text, whole, weight
    for b, s in enumerate(samples):
        one = other = number.setdefault(normalised(s.text), len(number))
        if s.second is not None:
            other = number.setdefault(normalised(s.second.text), len(number))
        if s.second is None or other == one:
            rows.append((b, one, one, s.alpha is None, 1.0))
        else:
            rows.append((b, one, other, s.alpha is None, 1 - s.second.weight))
            rows.append((b, other, one, s.second.whole, s.second.weight))
    rivals = [[number.setdefault(normalised(t), len(number)) for t in s.rivals] for s in samples]
    of, text, others, of_whole, weight = zip(*rows, strict=True) if rows else [()] * 5
    sample, text_of = torch.tensor(of, dtype=torch.int64), torch.tensor(text, dtype=torch.int64)
    ids = torch.tensor([_hash(text) for text in number], dtype=torch.int64)
    labels = Labels(
        text_id=ids[text_of],
        other_id=ids[torch.tensor(others, dtype=torch.int64)],
        picture=index[sample],
        whole=torch.tensor(of_whole, dtype=torch.bool),
        weight=torch.tensor(weight, dtype=torch.float32),
    )
    is_rival = torch.zeros(len(samples), len(number), dtype=torch.bool)
    for b, numbers in enumerate(rivals):
        is_rival[b, numbers] = True
    bad = [item.bad for item in items if item.bad is not None]
    return Batch(image, alpha, _small(alpha), whole, index, list(number), sample, text_of, labels, is_rival, bad)


def _small(alpha: Tensor) -> Tensor:
    """(B, 1, n, n) alpha to (B, g) masks."""
    return F.adaptive_avg_pool2d((alpha > 0).float(), min(MASK_GRID, alpha.shape[-1])).flatten(1)


def _hash(text: str) -> int:
    """63 bits: the same in every process and run, unlike Python's own."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Positions:
    """A data set by position in the run: epoch after epoch, each in an order drawn from (seed, epoch).

    What the data set itself draws, of torch, NumPy or Python, follows from (seed, epoch, index) too.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, preprocess: Preprocess) -> None:
        self.dataset, self.config, self.preprocess = dataset, config, preprocess

    def __getitem__(self, position: int) -> Item:
        epoch, offset = divmod(position, len(self.dataset))
        index = int(_permutation(self.config.seed, epoch, len(self.dataset))[offset])
        source = [self.config.seed, epoch, index]
        try:
            with _seeded(source):
                item = self.dataset[index]
            if isinstance(item, Picture):
                item = views(item, self.preprocess, self.config, np.random.default_rng(source))
        except BadSample as error:
            return Item(index, (), BadSample(error.key, error.reason, error.problem))  # without the frames it came from
        return Item(index, [item] if isinstance(item, Sample) else item)


@contextmanager
def _seeded(source: list[int]) -> Iterator[None]:
    """The global random states that follow from `source`; afterwards those from before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 what users' data sets draw from
    seed = int(np.random.SeedSequence(source).generate_state(1)[0])
    try:
        with torch.random.fork_rng(devices=()):
            torch.random.default_generator.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@lru_cache(2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


def positions(config: TrainConfig, step: int, rank: int, world: int) -> Iterator[list[int]]:
    """What process `rank` of `world` reads from `step` on, part by part, ``config.accumulate`` of them a step.

    Step s holds the positions from s * batch_size on, whatever the number of processes and parts.

    Raises:
        ValueError: the batch cannot be cut into equal parts.
    """
    parts = world * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size is {config.batch_size}, expected a multiple of {parts}, {world} processes x "
            f"{config.accumulate} parts"
        )
    size = config.batch_size // parts
    for s in range(step, config.steps):
        mine = range(s * config.batch_size + rank, (s + 1) * config.batch_size, world)
        yield from (list(mine[i * size : (i + 1) * size]) for i in range(config.accumulate))


def batches(
    dataset: Dataset,
    config: TrainConfig,
    preprocess: Preprocess,
    step: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Batch]:
    """The parts of steps `step` to ``config.steps``, ``config.accumulate`` a step.

    Raises:
        ValueError: the data set is empty, or the batch cannot be cut into equal parts.
    """
    if len(dataset) == 0:
        raise ValueError("the training set is empty: expected at least one item")
    return DataLoader(
        Positions(dataset, config, preprocess),  # type: ignore[arg-type]
        batch_sampler=list(positions(config, step, rank, world)),
        num_workers=config.workers,
        collate_fn=partial(collate, size=preprocess.n),
        worker_init_fn=leave_sigterm,
    )


def leave_sigterm(worker: int) -> None:
    """In a worker process: only the process that trains decides when to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
