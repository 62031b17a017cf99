"""COCO's run-length encoding of masks, checked before it is decoded.

pycocotools decodes a truncated string to garbage, and allocates whatever size a record claims; neither says a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 178_956_970  # of a mask: the limit above which Pillow refuses a picture

_MAX_CHARACTERS = 6  # of one number: 30 bits with the sign, enough for MAX_PIXELS


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return ``{"size": [H, W], "counts": str}``, ready for JSON, of a mask (H, W) bool.

    Raises:
        TypeError: the mask is not a bool array.
        ValueError: it is not (H, W), or has no pixels.
        ImportError: pycocotools is not installed.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != bool:
        kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"the mask is {kind}, expected a bool array: pass mask > 0.5")
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"the mask has shape {mask.shape}, expected (H, W), neither of them 0")
    encoded = _pycocotools().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def decode(rle: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask, (H, W) bool, of a picture of ``size`` (H, W).

    ``rle`` is ``{"size": [H, W], "counts": ...}``; the counts are a compressed str or bytes, or a list of run lengths.
    They go down the columns, the first run being background. Errors are those of `checked`.
    """
    packed = checked(rle, size)
    with warnings.catch_warnings():  # pycocotools 2.0.11 does not know NumPy 2's copy=
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        decoded: NDArray[np.uint8] = _pycocotools().decode(packed)  # (H, W) of 0 and 1
    return decoded.astype(bool)


def area(rle: dict[str, Any]) -> int:
    """Count the foreground pixels of an RLE that was `checked`, without decoding it."""
    return int(_pycocotools().area(rle))


def checked(rle: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return an RLE that `decode` takes, for a picture of ``size`` (H, W), in the form that `encode` returns.

    Raises:
        TypeError: the record or its counts are of another kind than those.
        ValueError: the record's size is not the picture's, or above `MAX_PIXELS`, or the runs do not add up to it.
        ImportError: pycocotools is not installed.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        found = f"a record of {sorted(map(str, rle))}" if isinstance(rle, dict) else f"{type(rle).__name__} {rle!r:.40}"
        raise TypeError(f'the RLE is {found}, expected a record {{"size": [H, W], "counts": ...}}')
    if rle["size"] not in (list(size), tuple(size)):
        raise ValueError(
            f"the RLE is of size {rle['size']!r:.60}, expected {list(size)}, the picture's height and width"
        )
    height, width = _drawable(size)
    counts = rle["counts"]
    runs = _listed(counts) if isinstance(counts, list) else _parsed(counts)
    if (total := sum(runs)) != height * width:
        raise ValueError(
            f"the RLE's runs add up to {total} pixels, expected {height * width}, {height} x {width}: it was cut off, "
            "or is of another mask; make it again"
        )
    if isinstance(counts, list):
        counts = _pycocotools().frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"]
    return {"size": [height, width], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def of_polygons(polygons: Sequence[Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return the RLE of the union of polygons, each [x, y, x, y, ...], as COCO draws them on a ``size`` of (H, W).

    Raises:
        ValueError: the size is above `MAX_PIXELS`; a polygon has not three corners or more, all of them numbers.
        ImportError: pycocotools is not installed.
    """
    height, width = _drawable(size)
    # Drawing costs as much as the outline is long, wherever it is: one far outside would cost all memory there is.
    inside = [_corners(polygon).clip(0, [width, height]).ravel().tolist() for polygon in polygons]
    coco = _pycocotools()
    merged = coco.merge(coco.frPyObjects(inside, height, width))
    return {"size": [height, width], "counts": merged["counts"].decode("ascii")}


def _corners(polygon: Any) -> NDArray[np.float64]:
    """Return the corners of a polygon, (N, 2): x and y of each."""
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError(f"the polygon is {polygon!r:.60}, expected x, y of three corners or more, all of them numbers")
    return points.reshape(-1, 2)


def _drawable(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"the RLE has {height} x {width} pixels, expected 1 to {MAX_PIXELS}: make the picture smaller")
    return height, width


def _listed(counts: list[Any]) -> list[int]:
    wrong = next((count for count in counts if type(count) is not int), None)
    if wrong is not None:
        raise TypeError(f"the RLE's counts hold {wrong!r:.40}, expected integers only")
    return _not_negative(counts)


def _parsed(counts: Any) -> list[int]:
    """Return the run lengths in a compressed string.

    As ``rleFrString`` in pycocotools' maskApi.c: 6 bits a character from 48 on, of which 5 are the number's, the lowest
    first, and one says that it goes on; the last one's highest bit is the sign; from the fourth on, a number is the
    difference to the one two before.
    """
    if not isinstance(counts, (str, bytes)):
        raise TypeError(f"the RLE's counts are {type(counts).__name__}, expected a string, bytes or a list of integers")
    data = counts.encode("utf-8") if isinstance(counts, str) else counts
    bits = np.frombuffer(data, np.uint8).astype(np.int64) - 48  # (N,)
    if not ((bits >= 0) & (bits < 64)).all():
        raise ValueError(f"the RLE's counts are {counts!r:.40}, expected only the characters '0' to 'o'")
    ends = np.flatnonzero(bits < 32)  # (R,)
    if len(ends) == 0 or ends[-1] != len(bits) - 1:
        raise ValueError(f"the RLE's counts end within a number, after {len(bits)} characters: it was cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])  # (R,)
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise ValueError(f"the RLE's counts have a number of {lengths.max()} characters, expected {_MAX_CHARACTERS}")
    place = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << place, starts)
    runs -= np.where(bits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return _not_negative(runs.tolist())


def _not_negative(runs: list[int]) -> list[int]:
    if min(runs, default=0) < 0:
        raise ValueError(f"the RLE has a run of {min(runs)} pixels, expected at least 0: it is damaged, make it again")
    return runs


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError("COCO RLE masks need pycocotools: pip install pycocotools") from error
    return mask
