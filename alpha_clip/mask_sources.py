"""Get the masks of a picture, and choose those that are worth a label.

* a file beside `photo.jpg`: `photo.masks.npz`, `photo.masks.png` or `photo.masks.json`; where there is none,
* `SamMasks`: SAM, SAM 2 or SAM 3 from transformers, asked at a grid of points; or
* `grid`: boxes of three sizes all over the picture, which need nothing and know no outlines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from . import rle
from .masks import iou
from .transforms import box_mask

Masks = NDArray[np.float32]  # (K, H, W) in [0, 1]
Source = Callable[[Image.Image], Iterable[NDArray[Any]]]  # of an upright RGB picture: masks (H, W) in [0, 1]

SIDE = 768  # pixels: more than any CLIP sees, and a hundred masks of it fit in memory
POINTS = 32  # on each side of a picture, at which SAM is asked, as its authors do
_COARSE = 96  # pixels a side, on which masks are compared
_TINY = 0.001  # of the picture
_SAME = 0.8  # intersection over union


def masks_of(path: Path, picture: Image.Image, source: Source) -> tuple[Image.Image, Masks]:
    """Return the picture, shrunk to sides of at most `SIDE`, and its masks that are worth a label, at the same size.

    Raises:
        ValueError: the file of masks beside the picture is not as in `beside`.
    """
    small = picture.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = mask_file(path)
    given = beside(file, picture.size) if file else source(small)
    found = [_resized(mask, small.size) for mask in given]
    masks = np.stack(found) if found else np.zeros((0, *small.size[::-1]), np.float32)
    return small, masks[worth_it(masks)]


def _resized(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    soft = Image.fromarray(np.asarray(mask, dtype=np.float32))
    return np.asarray(soft if soft.size == size else soft.resize(size, Image.Resampling.BOX))


def worth_it(masks: Masks) -> list[int]:
    """Return the indices of the masks to keep: no tiny ones, and only the first of those that are nearly the same.

    Tiny: below `_TINY` of the picture, or not half foreground anywhere. The same: intersection over union (from coarse
    copies) above `_SAME`.
    """
    kept: list[int] = []
    coarse: list[NDArray[np.float32]] = []
    for i, mask in enumerate(masks):
        if mask.mean() < _TINY or mask.max() <= 0.5:
            continue
        flat = _resized(mask, (_COARSE, _COARSE)).ravel()
        if all(iou(flat, other) <= _SAME for other in coarse):
            kept.append(i)
            coarse.append(flat)
    return kept


def in_words(sam: str | None, points: int = POINTS) -> str:
    """Describe, for the settings of an index, the source of masks: a file beside the picture, else SAM or a grid."""
    return f"beside the picture, else {f'{sam} at {points} x {points} points' if sam else 'a grid'}"


def when_needed(name: str, make: Callable[[], Source]) -> Source:
    """Return a source that calls ``make`` at the first picture that needs it, so that nobody waits for SAM in vain.

    What ``make`` raises is no fault of that picture: the source raises it as a RuntimeError, with the name.
    """

    @cache
    def made() -> Source:
        try:
            return make()
        except (ImportError, OSError, ValueError) as error:
            raise RuntimeError(f"{name}: {error}") from error

    return lambda picture: made()(picture)


# --- a file beside the picture ---


def mask_file(path: Path) -> Path | None:
    """Return the file of masks beside a picture, if there is one."""
    files = [path.with_suffix(f".masks.{kind}") for kind in ("npz", "png", "json")]
    return next((file for file in files if file.exists()), None)


def beside(file: Path, size: tuple[int, int]) -> Iterator[NDArray[Any]]:
    """Yield the masks in a file, for an upright picture of `size` (width, height).

    * `.npz`: an array ``masks`` (K, H, W): bool, or 0 and 1 or 0 to 255 as uint8, or floats in [0, 1];
    * `.png`: one number a pixel, 0 being background and any other an object;
    * `.json`: COCO's annotations of this one picture, a list or ``{"annotations": [...]}``, each with a
      ``segmentation`` of polygons or of run lengths (which need pycocotools). The files of SA-1B are such.

    Raises:
        ValueError: the file holds something else, or masks of another size.
    """
    readers = {".npz": _from_npz, ".png": _from_png, ".json": _from_coco}
    for mask in readers[file.suffix](file, size):
        if mask.shape != size[::-1]:
            raise ValueError(f"{file.name} holds masks of {mask.shape}, expected {size[::-1]}, the upright picture's")
        yield mask


def _from_png(file: Path, size: tuple[int, int]) -> Iterator[NDArray[Any]]:
    labels = np.asarray(Image.open(file))
    if labels.ndim != 2:
        raise ValueError(f"{file.name} has colours, expected one number a pixel: save it in mode L, I;16 or P")
    yield from (labels == label for label in np.unique(labels) if label != 0)


def _from_npz(file: Path, size: tuple[int, int]) -> Iterator[NDArray[Any]]:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        if "masks" not in arrays:
            raise ValueError(f"{file.name} holds {sorted(arrays)}, expected an array named masks")
        masks = arrays["masks"]
    if masks.ndim != 3 or (masks.dtype.kind not in "bf" and masks.dtype != np.uint8):
        expected = "expected (K, H, W) of bool, of uint8, or of floats from 0 to 1"
        raise ValueError(f"{file.name} holds masks of {masks.dtype} {masks.shape}, {expected}")
    scale = np.float32(255 if masks.dtype == np.uint8 and masks.max(initial=0) > 1 else 1)
    for mask in masks:
        yield mask / scale


def _from_coco(file: Path, size: tuple[int, int]) -> Iterator[NDArray[Any]]:
    record = json.loads(file.read_text(encoding="utf-8"))
    annotations = record.get("annotations") if isinstance(record, dict) else record
    if not isinstance(annotations, list) or not all(isinstance(a, dict) and "segmentation" in a for a in annotations):
        found = f"a record of {sorted(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise ValueError(
            f"{file.name} holds no list of annotations with a segmentation each, as COCO's files do, but {found:.200}"
        )
    for annotation in annotations:
        outline = annotation["segmentation"]
        if isinstance(outline, dict):
            yield rle.decode(outline, size[::-1])
            continue
        drawn = Image.new("1", size)
        for polygon in outline:  # x0, y0, x1, y1, ...
            ImageDraw.Draw(drawn).polygon(polygon, fill=1)
        yield np.asarray(drawn)


# --- nothing at all ---


def grid(picture: Image.Image) -> Iterator[NDArray[Any]]:
    """Yield 35 boxes: the whole picture, and windows of a half and a third of its sides, which overlap by half."""
    width, height = picture.size
    for parts in (1, 2, 3):
        steps = np.arange(2 * parts - 1) / (2 * parts)
        for y in steps * height:
            for x in steps * width:
                yield box_mask((x, y, x + width / parts, y + height / parts), (height, width))


# --- SAM ---


class SamMasks:
    """All masks that SAM, SAM 2 or SAM 3 finds at a grid of points (its "everything" mode), best first.

    The model computes in float32, whatever dtype its weights are stored in.

    Args:
        name: a model on the Hub, such as ``facebook/sam-vit-base``, ``facebook/sam2.1-hiera-small`` or
            ``facebook/sam3`` (points, without words: transformers' `Sam3TrackerModel`), or a folder.
        points: on each side of the picture.
        options: thresholds of the pipeline, such as ``pred_iou_thresh``.

    Raises:
        ImportError: transformers is not installed.
        OSError, ValueError: transformers cannot load `name`, or it is no such model.
    """

    def __init__(self, name: str, points: int = POINTS, device: str | None = None, **options: Any) -> None:
        try:
            from transformers import pipeline
        except ImportError as error:
            raise ImportError("SAM comes from transformers: pip install transformers") from error
        self._generate = pipeline("mask-generation", model=name, device=device)
        self._generate.model.float()  # in half precision, transformers 5 fails where it compares the masks
        # A grid of so many points for each crop of the picture; without further options the one crop is all of it.
        self._options = {"points_per_crop": points, **options}

    def __call__(self, picture: Image.Image) -> Iterator[NDArray[Any]]:
        for mask in self._generate(picture, **self._options)["masks"]:
            yield np.asarray(mask, dtype=bool)
