"""What a training set yields, and how it becomes batches in an order that a resumed run repeats."""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import Collection, Iterator, Sequence
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
from .records import CHECK, BadSample, Picture, UnreadableData
from .views import Sample, views

MASK_GRID = 32  # masks are compared at this size
MAX_BAD = 0.01  # largest share of unreadable pictures
BAD_FROM = 100  # pictures that must be read before `MAX_BAD` counts


@dataclass(frozen=True)
class Batch:
    """B samples with P texts in total, each a row of `labels`; U of the texts are different."""

    image: Tensor  # (B, 3, n, n)
    alpha: Tensor  # (B, 1, n, n)
    mask: Tensor  # (B, g) in [0, 1]: the masks, made small and flat
    whole: Tensor  # (B,) bool: this sample is a whole image
    keys: list[str]  # B, the key of the sample's picture in the data set
    texts: list[str]  # U
    first_text: Tensor  # (B,) int64, below U: the sample's first text; -1: it has no text
    sample_index: Tensor  # (P,) int64, below B
    text_index: Tensor  # (P,) int64, below U
    labels: Labels
    hard_negatives: Tensor  # (B, U) bool: texts that the sample is told from, and its own; none for most samples
    bad: list[BadSample]  # pictures left out because they could not be read
    too_small: int  # regions left out because they are too small

    def __len__(self) -> int:
        return len(self.image)


class Dataset(Protocol):
    """A map-style data set whose item is a `Picture`, one `Sample`, or the samples of one picture."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Picture | Sample | Sequence[Sample]: ...


@dataclass(frozen=True)
class Item:
    """The samples made of one item of the data set, or why there are none."""

    index: int
    position: int  # in the run: an item that comes twice has two
    key: str
    samples: Sequence[Sample]
    bad: BadSample | None = None
    too_small: int = 0  # regions left out


def normalised(text: str) -> str:
    """The text in lower case with single spaces: texts that differ in nothing else count as equal."""
    return " ".join(text.lower().split())


def collate(items: Sequence[Item], size: int = 1) -> Batch:
    """Combine items into a batch, in order; `size` is the side of its pictures if it has none."""
    samples = [sample for item in items for sample in item.samples]
    sources = [item for item in items for _ in item.samples]
    whole = torch.tensor([s.alpha is None for s in samples], dtype=torch.bool)
    image = torch.stack([s.image for s in samples]) if samples else torch.zeros(0, 3, size, size)
    foreground = image.new_full((1, *image.shape[2:]), FOREGROUND)
    alpha = torch.stack([foreground if s.alpha is None else s.alpha for s in samples]) if samples else image[:, :1]

    texts = _Texts()
    rows = [(b, *row) for b, s in enumerate(samples) for row in texts.rows(s)]
    first_text = [-1 if s.text is None else texts.number(s.text) for s in samples]
    columns = zip(*rows, strict=True) if rows else [()] * 5
    types = (torch.int64, torch.int64, torch.int64, torch.bool, torch.float32)
    sample_index, text_index, other, of_whole, weight = (
        torch.tensor(c, dtype=t) for c, t in zip(columns, types, strict=True)
    )
    told_from = [[str(s.text), *s.hard_negatives] if s.hard_negatives else [] for s in samples]
    numbers = [[texts.number(text) for text in some] for some in told_from]
    hard_negatives = torch.zeros(len(samples), len(texts.numbers), dtype=torch.bool)
    for b, own in enumerate(numbers):
        hard_negatives[b, own] = True

    ids = texts.ids()
    index = torch.tensor([item.index for item in sources], dtype=torch.int64)
    position = torch.tensor([item.position for item in sources], dtype=torch.int64)
    labels = Labels(ids[text_index], ids[other], index[sample_index], position[sample_index], of_whole, weight)
    return Batch(
        image=image,
        alpha=alpha,
        mask=_small(alpha),
        whole=whole,
        keys=[item.key for item in sources],
        texts=list(texts.numbers),
        first_text=torch.tensor(first_text, dtype=torch.int64),
        sample_index=sample_index,
        text_index=text_index,
        labels=labels,
        hard_negatives=hard_negatives,
        bad=[item.bad for item in items if item.bad is not None],
        too_small=sum(item.too_small for item in items),
    )


class _Texts:
    """The different texts of a batch, numbered as they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self.numbers.setdefault(normalised(text), len(self.numbers))

    def rows(self, sample: Sample) -> list[tuple[int, int, bool, float]]:
        """For each text of a sample: its number, the other text's (or its own again), whole or not, weight."""
        if sample.text is None:
            return []
        one, whole, second = self.number(sample.text), sample.alpha is None, sample.second
        other = one if second is None else self.number(second.text)
        if second is None or other == one:
            return [(one, one, whole, 1.0)]
        return [(one, other, whole, 1 - second.weight), (other, one, second.whole, second.weight)]

    def ids(self) -> Tensor:
        """(U,) 63-bit hashes of the texts, the same in every process and run, unlike Python's own."""
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in self.numbers]
        return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)


def _small(alpha: Tensor) -> Tensor:
    """(B, 1, n, n) alpha to (B, g) masks."""
    return F.adaptive_avg_pool2d((alpha > 0).float(), min(MASK_GRID, alpha.shape[-1])).flatten(1)


class Positions:
    """A data set by position in the run: epoch after epoch, each in an order drawn from (seed, epoch).

    Whatever the data set draws from the global generators of torch, NumPy or Python follows from (seed, epoch, index)
    too.
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
                samples, small = views(item, self.preprocess, self.config, np.random.default_rng(source))
                return Item(index, position, item.key, samples, too_small=small)
        except BadSample as error:  # a copy holds no frames
            bad = BadSample(error.key, error.reason, error.problem)
            return Item(index, position, error.key, (), bad)
        return Item(index, position, str(index), [item] if isinstance(item, Sample) else item)


@contextmanager
def _seeded(source: list[int]) -> Iterator[None]:
    """Seed the global generators from `source`, and restore their states afterwards."""
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


class Parts:
    """A batch sampler: the positions that process `rank` of `world` reads, ``config.accumulate`` parts a step.

    Step s reads the batch_size positions from s * batch_size on, whatever the number of processes and parts.

    Raises:
        ValueError: the batch cannot be cut into equal parts.
    """

    def __init__(self, config: TrainConfig, step: int, rank: int, world: int) -> None:
        parts = world * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size is {config.batch_size}, expected a multiple of {parts}, {world} processes x "
                f"{config.accumulate} parts"
            )
        self.config, self.step, self.rank, self.world, self.size = config, step, rank, world, config.batch_size // parts

    def __len__(self) -> int:
        return (self.config.steps - self.step) * self.config.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.config.batch_size
        for s in range(self.step, self.config.steps):
            mine = range(s * batch + self.rank, (s + 1) * batch, self.world)
            yield from (list(mine[i : i + self.size]) for i in range(0, len(mine), self.size))


def batches(
    dataset: Dataset,
    config: TrainConfig,
    preprocess: Preprocess,
    step: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Batch]:
    """Load the batches of the steps from `step` to ``config.steps``, ``config.accumulate`` parts a step.

    Raises:
        ValueError: the data set is empty, or the batch cannot be cut into equal parts.
    """
    if len(dataset) == 0:
        raise ValueError("the training set is empty: expected at least one item")
    return DataLoader(
        Positions(dataset, config, preprocess),  # type: ignore[arg-type]
        batch_sampler=Parts(config, step, rank, world),
        num_workers=config.workers,
        collate_fn=partial(collate, size=preprocess.n),
        worker_init_fn=leave_signals,
        generator=own_generator(config),
    )


def own_generator(config: TrainConfig) -> torch.Generator:
    """For a DataLoader, which draws from it at its start: the global one would make a resumed run's dropout another."""
    return torch.Generator().manual_seed(config.seed)


@contextmanager
def reading(loader: DataLoader[Batch]) -> Iterator[Iterator[Batch]]:
    """Iterate over the batches of a loader, and shut down its workers afterwards.

    Otherwise the traceback of an error keeps them alive, and Python waits for them for ever when the process ends.
    """
    parts = iter(loader)
    try:
        yield parts
    finally:
        if loader.num_workers:
            parts._shutdown_workers()  # type: ignore[attr-defined]


def check_readable(read: int, unreadable: int, last: Collection[BadSample]) -> None:
    """Raise `UnreadableData` if too many of the pictures could not be read; `last` are some of them."""
    if unreadable and ((read >= BAD_FROM and unreadable > MAX_BAD * read) or unreadable >= read):
        because = f", the last because: {'; '.join(map(str, last))}" if last else ""
        raise UnreadableData(
            f"{unreadable} of {read} pictures could not be read, more than {MAX_BAD:.0%}{because}. {CHECK}"
        )


def leave_signals(worker: int) -> None:
    """Ignore SIGTERM and Ctrl-C in a worker: the process that trains decides when to end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
