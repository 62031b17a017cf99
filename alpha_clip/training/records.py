"""A picture with regions, and how it is made of a stored record."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .. import rle
from ..given_masks import mask_values, unit_mask
from ..transforms import box_mask, upright

CHECK = "`python -m alpha_clip.training.check DATA` lists them all."


class BadSample(ValueError):
    """One sample that cannot be used, while others can. ``problem`` is its kind, for counting."""

    def __init__(self, key: str, reason: str, problem: str = "unusable sample") -> None:
        super().__init__(key, reason, problem)  # all three, so that it can be pickled
        self.key, self.reason, self.problem = key, reason, problem

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class UnreadableData(RuntimeError):
    """Too many samples of a data set cannot be used."""


@dataclass(frozen=True, eq=False)
class Region:
    """A region of a picture: where it is, and what is there."""

    phrase: str
    mask: NDArray[np.float32]  # (H, W) in [0, 1], with some above 0.5, of the upright picture's size
    score: float | None = None  # confidence of whatever made it


@dataclass(frozen=True, eq=False)
class Picture:
    """An RGB picture, turned upright by its EXIF orientation, and its regions, whose masks fit the upright picture."""

    key: str  # its name in its data set
    image: Image.Image
    caption: str | None
    regions: tuple[Region, ...]


def parsed(text: bytes) -> dict[str, Any]:
    """Parse one JSON record.

    Raises:
        ValueError: the text is not JSON, or not a record.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:  # among them UnicodeDecodeError
        raise ValueError(f"{text[:40]!r} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{text[:40]!r} is {type(record).__name__}, expected a record, {{...}}")
    return record


def make_picture(
    key: str,
    data: bytes,
    caption: str | None,
    regions: Sequence[Mapping[str, Any]],
    path_of: Callable[[str], Path] | None = None,
) -> Picture:
    """Make a `Picture` of the image file `data` and of records with "phrase", "mask", and perhaps "box" and "score".

    Args:
        path_of: maps the name of a mask to its file; None: masks cannot be files.

    Raises:
        BadSample: the picture or one of its regions cannot be read or is not valid.
    """
    image, stored = _upright(key, data)
    check_caption(key, caption, regions)
    size = image.size[::-1]
    read = [make_region(key, number, region, size, stored, path_of) for number, region in enumerate(regions)]
    return Picture(key, image, caption, tuple(read))


def check_caption(key: str, caption: str | None, regions: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a picture of which nothing is said.

    Raises:
        BadSample: it has neither a region nor a caption, or the caption is not words.
    """
    if not regions and caption is None:
        reason = "it has neither a region nor a caption: give it a text with a mask, or a caption"
        raise BadSample(key, reason, "malformed record")
    if caption is not None and not (isinstance(caption, str) and caption.strip()):
        raise BadSample(key, f"its caption is {caption!r:.60}, expected words, or null for none", "empty text")


def _upright(key: str, data: bytes) -> tuple[Image.Image, tuple[int, int]]:
    """The picture in RGB, turned upright, and the (H, W) it is stored with."""
    try:
        with Image.open(io.BytesIO(data)) as stored:
            stored.load()
            return upright(stored), stored.size[::-1]
    except UnidentifiedImageError as error:  # its message names nothing but an address in memory
        reason = "the picture cannot be read: its file is of no format that Pillow knows"
        raise BadSample(key, reason, "unreadable picture") from error
    except Exception as error:  # Pillow's decoders raise nearly anything when a file is broken
        raise BadSample(key, f"the picture cannot be read: {error}", "unreadable picture") from error


def make_region(
    key: str,
    number: int,
    region: Mapping[str, Any],
    size: tuple[int, int],
    stored: tuple[int, int],
    path_of: Callable[[str], Path] | None = None,
) -> Region:
    """Make the region `number` of a picture of `size` (H, W), which is `stored` (H, W) before it is turned upright.

    Raises:
        BadSample: its text or its mask cannot be used.
    """
    phrase, score = region.get("phrase"), region.get("score")
    if not (isinstance(phrase, str) and phrase.strip()):
        raise BadSample(key, f"the text of region {number} is {phrase!r:.60}, expected words", "empty text")
    if score is not None and not isinstance(score, (int, float)):
        raise BadSample(key, f"the score of region {number} is {score!r:.60}, expected a number", "malformed record")
    name = f"the mask of region {number}, {phrase!r:.40},"
    try:
        values = _mask_values(region, size, path_of)
    except ImportError:
        raise
    except Exception as error:  # nearly anything, since a mask may be a picture too
        claimed = region["mask"].get("size", [*size]) if isinstance(region.get("mask"), dict) else [*size]
        problem = "unusable mask" if claimed == [*size] else "mask of another size"
        raise BadSample(key, f"{name} cannot be used: {error}", problem) from error
    if values.shape != size:
        remedy = "make the mask of PIL.ImageOps.exif_transpose(image)" if values.shape == stored else "resize it"
        reason = f"{name} has shape {values.shape}, expected {size}, the upright picture's height and width: {remedy}"
        raise BadSample(key, reason, "mask of another size")
    try:
        mask = unit_mask(values, name)
    except (ValueError, TypeError) as error:
        raise BadSample(key, str(error), "unusable mask" if values.any() else "empty mask") from error
    if not (mask > 0.5).any():
        raise BadSample(key, f"{name} has no pixel above 0.5, expected a region to look at", "empty mask")
    return Region(phrase, mask, score)


def _mask_values(
    region: Mapping[str, Any], size: tuple[int, int], path_of: Callable[[str], Path] | None
) -> NDArray[Any]:
    mask = region.get("mask")
    if mask is None:
        mask = region.get("box")
    if isinstance(mask, dict):
        return rle.decode(mask, size)
    if isinstance(mask, list):
        return box_mask(mask, size)
    if isinstance(mask, str) and path_of is not None:
        return mask_values(path_of(mask), "the file")
    expected = "a COCO RLE or a box [x0, y0, x1, y1]" + (", or a file" if path_of else "")
    raise TypeError(f"it is {mask!r:.60}, expected {expected}")
