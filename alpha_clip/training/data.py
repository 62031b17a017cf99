"""What a training set yields, and how it becomes batches in an order that a resumed run repeats."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..model import FOREGROUND
from ..transforms import Preprocess
from . import masks
from .config import TrainConfig
from .pictures import BadSample, Picture

REGIONS_PER_PICTURE = 8  # drawn anew each epoch from pictures that have more


@dataclass(frozen=True)
class Sample:
    """One picture, where to look in it, and what is there."""

    image: Tensor  # (3, n, n), normalised as by `preprocess`
    text: str
    alpha: Tensor | None = None  # (1, n, n), (mask - 0.5) / 0.26; None: the whole image


@dataclass(frozen=True)
class Batch:
    """B samples; `texts` are the U different ones among theirs, and `text_of` (B,) says which is whose."""

    image: Tensor  # (B, 3, n, n)
    alpha: Tensor  # (B, 1, n, n)
    whole: Tensor  # (B,) bool: this sample is a whole image
    texts: list[str]
    text_of: Tensor  # (B,) int64, below U
    text_id: Tensor  # (B,) int64, equal where texts are, in any batch and process
    picture: Tensor  # (B,) int64, equal where samples are of one picture
    bad: list[BadSample]  # what could not be read, and is not in it

    def __len__(self) -> int:
        return len(self.image)


class Dataset(Protocol):
    """A map-style data set whose item is a `Picture`, one `Sample`, or the samples of one picture."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Picture | Sample | Sequence[Sample]: ...


def views(picture: Picture, preprocess: Preprocess, config: TrainConfig, rng: np.random.Generator) -> list[Sample]:
    """The samples that one epoch makes of a picture: its regions under changed masks, some of them the whole picture.

    Raises:
        BadSample: the picture has neither a region nor a caption, or a mask that no geometry can use.
    """
    chosen = rng.permutation(len(picture.regions))[:REGIONS_PER_PICTURE]
    regions = [picture.regions[i] for i in chosen]
    # At most one of a picture is the whole of it, so that it never stands twice in a batch.
    whole = picture.caption is not None and (not regions or rng.random() < config.whole * len(regions))
    if whole and regions:
        regions.pop()
    if not whole and not regions:
        raise BadSample(picture.key, "it has neither a region nor a caption")
    try:
        samples = []
        if regions:
            changed = np.stack([_changed(region.mask, config, rng) for region in regions])
            rgb, alpha = preprocess(picture.image, changed, geometry=config.geometry)
            samples = [Sample(rgb, region.phrase, a) for region, a in zip(regions, alpha, strict=True)]
        if whole:
            full = np.ones((1, picture.image.height, picture.image.width), np.float32)
            rgb, _ = preprocess(picture.image, full, geometry=config.geometry)
            samples.append(Sample(rgb, str(picture.caption)))
    except (ValueError, OSError) as error:
        raise BadSample(picture.key, str(error)) from error
    return samples


def _changed(mask: np.ndarray, config: TrainConfig, rng: np.random.Generator) -> np.ndarray:
    kind = rng.random()
    for share, change in ((config.box, masks.box), (config.ellipse, masks.ellipse)):
        if kind < share:
            return change(mask)
        kind -= share
    return masks.jitter(mask, rng) if kind < config.jitter else mask


def normalised(text: str) -> str:
    """Texts that differ only in case or spaces count as equal."""
    return " ".join(text.lower().split())


def collate(items: Sequence[tuple[int, Sequence[Sample] | BadSample]], size: int = 1) -> Batch:
    """(position, samples) of each picture to one batch, in their order; `size`: the pictures', should none be left."""
    samples = [(position, s) for position, item in items if not isinstance(item, BadSample) for s in item]
    bad = [item for _, item in items if isinstance(item, BadSample)]
    if not samples:
        none = torch.zeros(0, dtype=torch.int64)
        image = torch.zeros(0, 3, size, size)
        return Batch(image, image[:, :1], none.bool(), [], none, none, none, bad)
    image = torch.stack([s.image for _, s in samples])
    foreground = torch.full_like(image[0, :1], FOREGROUND)
    alpha = torch.stack([foreground if s.alpha is None else s.alpha for _, s in samples])
    whole = torch.tensor([s.alpha is None for _, s in samples])
    number: dict[str, int] = {}
    text_of = [number.setdefault(normalised(s.text), len(number)) for _, s in samples]
    ids = torch.tensor([_hash(text) for text in number])
    picture = torch.tensor([position for position, _ in samples])
    return Batch(image, alpha, whole, list(number), torch.tensor(text_of), ids[text_of], picture, bad)


def _hash(text: str) -> int:
    """63 bits: the same in every process and run, unlike Python's own."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Positions:
    """A data set by position in the run: epoch after epoch, each in an order drawn from (seed, epoch)."""

    def __init__(self, dataset: Dataset, config: TrainConfig, preprocess: Preprocess) -> None:
        self.dataset, self.config, self.preprocess = dataset, config, preprocess

    def __getitem__(self, position: int) -> tuple[int, Sequence[Sample] | BadSample]:
        epoch, offset = divmod(position, len(self.dataset))
        index = int(_permutation(self.config.seed, epoch, len(self.dataset))[offset])
        try:
            item = self.dataset[index]
            if isinstance(item, Picture):
                item = views(
                    item, self.preprocess, self.config, np.random.default_rng([self.config.seed, epoch, index])
                )
        except BadSample as error:
            return position, BadSample(error.key, error.reason, error.problem)  # without the frames it came from
        return position, [item] if isinstance(item, Sample) else item


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
