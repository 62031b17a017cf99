"""What goes through the stages: pictures with boxes and phrases. A stage is a function of a list of them."""

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
    """A mask as it is stored, which is small, with what filters ask of it."""

    rle: dict[str, Any]
    box: tuple[int, int, int, int]  # around its pixels
    share: float  # of the picture's pixels

    @classmethod
    def of(cls, pixels: NDArray[np.bool_]) -> Mask:
        """From (H, W) bool.

        Raises:
            ValueError: nothing is in it.
        """
        return cls(rle.encode(pixels), mask_box(pixels), float(pixels.mean()))


@dataclass(frozen=True)
class Target:
    """A place in a picture, and what is there."""

    phrase: str
    box: Box
    score: float | None = None  # of whoever or whatever found it
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
    """Some pictures in, the same or fewer out; what became of the others goes into the ledger."""

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]: ...


def batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """`size` samples at a time. While the next ones are read the last ones are there too, and no others.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"the batch is {size} pictures, expected at least 1")
    source = iter(samples)
    while batch := list(islice(source, size)):
        yield batch
