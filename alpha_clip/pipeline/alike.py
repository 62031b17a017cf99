"""The marks by which pictures that look alike, or have the same caption, are told: how they are made and compared."""

from __future__ import annotations

import hashlib
from array import array
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Alike = Literal["both", "picture", "caption"]

NEAR = 2.0  # marks are alike if their colours differ by no more (root mean square, of 255 levels): copies do by 1 or so

_SIDE = 8  # rows and columns of the grid of colours in a mark
_LOOK = 3 * _SIDE**2  # bytes of these colours
BYTES = _LOOK + 8  # size of a mark

# Near marks are found by locality-sensitive hashing (Datar et al. 2004, doi:10.1145/997817.997857). A key is a hash of
# sums of the colours with random signs, each rounded down to a step. The sums of two marks that differ by r levels
# (root mean square) differ by about 14 r, 14 being the square root of 192, whatever the marks have in common.
_TABLES, _SUMS, _STEP = 8, 10, 166  # so that a pair at r = 1 has a key in common in 99.6 % of cases, at r = 2 in 89 %
_RANDOM = np.random.default_rng(0)
_SIGNS = _RANDOM.choice((-1.0, 1.0), (_TABLES, _SUMS, _LOOK)).astype(np.float32)
_STARTS = _RANDOM.integers(_STEP, size=(_TABLES, _SUMS))  # where the first step of each sum begins
_FACTORS = _RANDOM.integers(1 << 64, size=_SUMS, dtype=np.uint64)  # of a hash of the steps


def marked(image: Image.Image, caption: str | None) -> bytes:
    """The mark of a picture and its caption, 200 bytes: `looks`, then `words`."""
    return looks(image) + words(caption or "")


def looks(image: Image.Image) -> bytes:
    """The colours of an RGB picture on an 8 x 8 grid, 192 bytes, nearly the same for copies of other sizes."""
    return image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR).tobytes()


def words(text: str) -> bytes:
    """A hash of a text, 8 bytes, which case and spaces do not change."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest()


def tables(by: Alike) -> range:
    """The numbers of the tables of keys: marks that are alike share a key in one of them, nearly always."""
    return range(1 if by == "caption" else _TABLES)


def keys(marks: NDArray[np.uint8], by: Alike, table: int | None = None) -> NDArray[np.uint64]:
    """The keys (N, tables) of marks (N, 200), or (N, 1) of one table; the same on every machine."""
    text = np.ascontiguousarray(marks[:, _LOOK:]).view(np.uint64)  # (N, 1)
    if by == "caption":
        return text
    chosen = slice(None) if table is None else slice(table, table + 1)
    signs, starts = _SIGNS[chosen], _STARTS[chosen]
    sums = marks[:, :_LOOK].astype(np.float32) @ signs.reshape(-1, _LOOK).T  # whole numbers below 2**24: exact
    steps = (sums.astype(np.int64).reshape(-1, *starts.shape) + starts) // _STEP  # (N, tables, sums)
    look: NDArray[np.uint64] = (steps.astype(np.uint64) * _FACTORS).sum(-1)
    return look if by == "picture" else look ^ text


class MarkSet:
    """A set of marks that tells whether another mark is like one of them. It holds some 2 kB for each."""

    def __init__(self, by: Alike) -> None:
        self.by = by
        self._looks = np.empty((64, _LOOK), np.uint8)  # the first `_count` rows are in use
        self._count = 0
        self._latest: tuple[bytes, list[int]] = b"", []
        self._rows: list[dict[int, array[int]]] = [{} for _ in tables(by)]  # for each table: key -> rows of `_looks`

    def holds(self, mark: bytes) -> bool:
        """Whether the set holds a mark that is like this one."""
        look = np.frombuffer(mark, np.uint8)[:_LOOK]
        for rows, key in zip(self._rows, self._keys(mark), strict=True):
            if (found := rows.get(key)) and (self.by == "caption" or _is_near(look, self._looks[found])):
                return True
        return False

    def add(self, mark: bytes) -> None:
        if self._count == len(self._looks):
            self._looks = np.concatenate([self._looks, np.empty_like(self._looks)])
        self._looks[self._count] = np.frombuffer(mark, np.uint8)[:_LOOK]
        for rows, key in zip(self._rows, self._keys(mark), strict=True):
            rows.setdefault(key, array("q")).append(self._count)
        self._count += 1

    def _keys(self, mark: bytes) -> list[int]:
        """The key of each table."""
        if mark != self._latest[0]:  # whoever adds a mark has usually just asked for it
            found: list[int] = keys(np.frombuffer(mark, np.uint8)[None], self.by)[0].tolist()
            self._latest = mark, found
        return self._latest[1]


def _is_near(look: NDArray[np.uint8], others: NDArray[np.uint8]) -> bool:
    """Whether one of `others` (N, 192) differs from `look` (192,) by `NEAR` at most."""
    apart = others.astype(np.int32) - look
    return bool((np.einsum("ij,ij->i", apart, apart) <= _LOOK * NEAR**2).any())
