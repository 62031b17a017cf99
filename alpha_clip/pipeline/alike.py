"""Pictures that look alike or are called the same: what is remembered of each, and how that is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Alike = Literal["both", "picture", "caption"]

NEAR = 2.0  # levels of 255, root mean square, that the colours of two marks differ at most: copies do by 1 or so

_SIDE = 8  # rows and columns of a mark's colours
_LOOK = 3 * _SIDE**2  # bytes
BYTES = _LOOK + 8  # of a mark

_STEP = 64  # levels; coarse colours are the same for all in between
_SHIFTS = (0, 21, 42)  # where the steps begin: what is at the border of one is in the middle of another
_FACTORS = np.random.default_rng(0).integers(1 << 64, size=48, dtype=np.uint64)  # of a hash of the coarse colours


def marked(image: Image.Image, caption: str | None) -> bytes:
    """What is remembered of a picture: `looks` and `words`."""
    return looks(image) + words(caption or "")


def looks(image: Image.Image) -> bytes:
    """How an RGB picture looks, 192 bytes: its colours on an 8 x 8 grid, nearly the same for copies of other sizes."""
    return image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR).tobytes()


def words(text: str) -> bytes:
    """A hash of a text, 8 bytes, whatever its case and spaces."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest()


def tables(by: Alike) -> range:
    """In how many ways `keys` gives keys: marks that are alike have the same in one of them, nearly always."""
    return range(1 if by == "caption" else len(_SHIFTS))


def keys(marks: NDArray[np.uint8], by: Alike, table: int) -> NDArray[np.uint64]:
    """(N,) of N marks, (N, 200): of their words, or of their colours on a 4 x 4 grid in coarse steps, or of both."""
    text = np.ascontiguousarray(marks[:, _LOOK:]).view(np.uint64)[:, 0]
    if by == "caption":
        return text
    sums = marks[:, :_LOOK].reshape(-1, 4, 2, 4, 2, 3).sum((2, 4), np.uint64).reshape(-1, 48)  # of 4 each
    steps = (sums + np.uint64(4 * _SHIFTS[table])) // np.uint64(4 * _STEP)
    look: NDArray[np.uint64] = (steps * _FACTORS).sum(1)
    return look if by == "picture" else look ^ text


class Seen:
    """Marks of pictures, with which others are compared. It holds some 700 bytes for each."""

    def __init__(self, by: Alike) -> None:
        self.by = by
        self._looks: dict[int, list[bytes]] = {}

    def holds(self, mark: bytes) -> bool:
        """Whether one is there that is alike."""
        found = (self._looks.get(key, ()) for key in self._keys(mark))
        return any(looks and (self.by == "caption" or _is_near(mark[:_LOOK], looks)) for looks in found)

    def add(self, mark: bytes) -> None:
        look = mark[:_LOOK]
        for key in self._keys(mark):
            self._looks.setdefault(key, []).append(look)

    def _keys(self, mark: bytes) -> set[int]:
        marks = np.frombuffer(mark, np.uint8)[None]
        return {int(keys(marks, self.by, table)[0]) for table in tables(self.by)}


def _is_near(look: bytes, others: Sequence[bytes]) -> bool:
    rows = np.frombuffer(b"".join(others), np.uint8).reshape(-1, _LOOK)
    apart = rows.astype(np.int32) - np.frombuffer(look, np.uint8)
    return bool(((apart**2).sum(1) <= _LOOK * NEAR**2).any())
