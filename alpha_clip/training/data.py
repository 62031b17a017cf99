"""What a training set yields, and how it becomes batches in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..model import FOREGROUND
from .config import TrainConfig


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


class Dataset(Protocol):
    """A map-style data set whose item is one sample, or the samples of one picture."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample | Sequence[Sample]: ...


def collate(items: Sequence[Sample | Sequence[Sample]]) -> Batch:
    """Items to one batch, in their order. Texts that differ only in case or spaces count as equal."""
    samples = [s for item in items for s in ([item] if isinstance(item, Sample) else item)]
    image = torch.stack([s.image for s in samples])
    foreground = torch.full_like(image[0, :1], FOREGROUND)
    alpha = torch.stack([foreground if s.alpha is None else s.alpha for s in samples])
    whole = torch.tensor([s.alpha is None for s in samples])
    number: dict[str, int] = {}
    text_of = [number.setdefault(" ".join(s.text.lower().split()), len(number)) for s in samples]
    return Batch(image, alpha, whole, list(number), torch.tensor(text_of))


class Order(Sampler[int]):
    """Indices of a run from item `start` on: epoch after epoch, each a permutation drawn from (seed, epoch)."""

    def __init__(self, length: int, seed: int, start: int, stop: int) -> None:
        self.length, self.seed, self.start, self.stop = length, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[int]:
        position = self.start
        while position < self.stop:
            epoch, offset = divmod(position, self.length)
            permutation = np.random.default_rng([self.seed, epoch]).permutation(self.length).tolist()
            yield from permutation[offset : offset + self.stop - position]
            position += self.length - offset


def batches(dataset: Dataset, config: TrainConfig, start: int) -> DataLoader[Batch]:
    """The batches of steps `start` to ``config.steps``.

    Raises:
        ValueError: the data set is empty.
    """
    if len(dataset) == 0:
        raise ValueError("the training set is empty: expected at least one item")
    size = config.batch_size
    order = Order(len(dataset), config.seed, start * size, config.steps * size)
    return DataLoader(dataset, size, sampler=order, num_workers=config.workers, collate_fn=collate)  # type: ignore
