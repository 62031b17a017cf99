"""Samples, pictures with boxes and phrases, and the stages that they go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import rle
from ..transforms import mask_box
from .ledger import Ledger

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the upright picture, x1 and y1 exclusive


@dataclass(frozen=True)
class Mask:
    """A mask as it is stored, in few bytes, with its box and area, which the filters need."""

    rle: dict[str, Any]
    box: tuple[int, int, int, int]  # around its pixels
    share: float  # of the picture's pixels

    @classmethod
    def of(cls, pixels: NDArray[np.bool_]) -> Mask:
        """Encode a mask (H, W) bool.

        Raises:
            ValueError: the mask is empty.
        """
        return cls(rle.encode(pixels), mask_box(pixels), float(pixels.mean()))


@dataclass(frozen=True)
class Target:
    """A region of a picture, and the phrase that names it."""

    phrase: str
    box: Box
    score: float | None = None  # given by the person or model that found it
    mask: Mask | None = None
    number: int = 0  # among those of its picture's record, before any was left out


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture on its way through the stages."""

    key: str
    data: bytes  # the file it was read from, which is what is written
    suffix: str  # of such files: jpg, png or webp
    image: Image.Image  # RGB, upright
    caption: str | None
    targets: tuple[Target, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)  # where it comes from: url, license, ...


class Stage(Protocol):
    """Takes a list of samples and returns one. What it leaves out is counted in the ledger."""

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]: ...


def batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Yield lists of `size` samples. Memory holds the last list, and the next one while it is read, and no others.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"the batch is {size} pictures, expected at least 1")
    source = iter(samples)
    while batch := list(islice(source, size)):
        yield batch
