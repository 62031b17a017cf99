"""Convert what users pass as a mask to (H, W) float32 in [0, 1], or raise an error that says how to make one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

Mask: TypeAlias = Image.Image | NDArray[Any] | Tensor | str | os.PathLike[str]

_ROUNDING = 1e-5  # what a blur or a resize in float32 may overshoot 0 and 1 by

# Of `_label_of`. JPEG and WebP move a mask's 0 and 255 by up to 7, and then leave dozens of values, not a few. The
# share is of what is not background, and of the edges: soft masks have less that looks like labels, label maps more.
_RINGING, _FEW_VALUES, _SHARE = 7, 8, 0.25


def opened(path: str | os.PathLike[str]) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def read_masks(
    mask: Mask | Sequence[Mask], upright: tuple[int, int], stored: tuple[int, int]
) -> tuple[Iterator[Tensor], int | None]:
    """Return the masks, each (H, W) float32 in [0, 1], and their number K; None: it was one mask without K."""
    if isinstance(mask, (list, tuple)):
        if mask and (_is_numbers(mask) or all(_is_numbers(m) and len(m) == 2 for m in mask)):
            raise TypeError(f"mask is {type(mask).__name__}{_EXPECTED}{_remedy(mask)}")
        arrays, one = [mask_values(m, f"mask {i}") for i, m in enumerate(mask)], False
    else:
        array = mask_values(mask, "mask")  # type: ignore[arg-type]
        one = array.ndim != 3
        if not one:
            _check_size(array.shape, "mask", upright, stored, many=True)
        arrays = [array] if one else list(array)
    if not arrays:
        raise ValueError("there are 0 masks, expected 1 or more: leave the mask out for the whole picture")
    names = ["mask"] if one else [f"mask {i}" for i in range(len(arrays))]
    for array, name in zip(arrays, names, strict=True):
        _check_size(array.shape, name, upright, stored)
    found = (torch.from_numpy(unit_mask(array, name)) for array, name in zip(arrays, names, strict=True))
    return found, None if one else len(arrays)


def mask_values(mask: Mask, name: str) -> NDArray[Any]:
    """Return the mask's values as an array, not yet scaled."""
    if isinstance(mask, (str, os.PathLike)):
        mask = opened(mask)
    if isinstance(mask, Image.Image):
        return _picture_values(ImageOps.exif_transpose(mask), name)
    if isinstance(mask, Tensor):
        mask = (mask.float() if mask.is_floating_point() else mask).numpy(force=True)  # numpy has no bfloat16
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"{name} is {type(mask).__name__}{_EXPECTED}{_remedy(mask)}")
    return mask


_EXPECTED = ", expected an array, a tensor, a PIL image or a path"
_OF_BOXES = ": of a box make alpha_clip.box_mask(box, (height, width))"
_OF_POLYGONS = (
    ": draw a polygon, PIL.ImageDraw.Draw(mask).polygon(points, fill=1) on mask = Image.new('1', (width, height)), "
    "or let pycocotools.mask.frPyObjects and decode make a mask of COCO's"
)


def _remedy(given: Any) -> str:
    """Say how to turn what SAM, COCO and others return into a mask."""
    if isinstance(given, dict):
        if "counts" in given:
            first = " of pycocotools.mask.frPyObjects(rle, height, width)" if _is_numbers(given["counts"]) else ""
            return f": decode run lengths, pycocotools.mask.decode(rle){first}"
        key = next((key for key in ("segmentation", "masks", "mask") if key in given), None)
        return f': pass what it holds, [m["{key}"] for m in masks]' if key else ""
    if _is_numbers(given):
        if len(given) == 4:
            return _OF_BOXES
        return ": make it an array, np.array(mask)" if {*given} <= {0, 1} else _OF_POLYGONS
    if isinstance(given, (list, tuple)) and given and all(map(_is_numbers, given)):
        return _OF_POLYGONS
    return ""


def _is_numbers(given: Any) -> bool:
    return isinstance(given, (list, tuple)) and bool(given) and all(isinstance(x, (int, float)) for x in given)


def _picture_values(picture: Image.Image, name: str) -> NDArray[Any]:
    """Return the values of a mask that is given as a picture, (H, W)."""
    if len(picture.getbands()) == 1 and picture.mode != "P":
        return np.asarray(picture)
    if "A" in picture.getbands():
        transparency = picture.getchannel("A")
        if transparency.getextrema() != (255, 255):
            return np.asarray(transparency)
    rgb = np.asarray(picture.convert("RGB"))
    if (rgb == rgb[..., :1]).all():
        return rgb[..., 0]
    if picture.mode != "P":
        raise ValueError(f"{name} is a colour picture, expected a grey one: compare it with the colour you mean")
    labels = np.asarray(picture)
    found = np.unique(labels[labels > 0]).tolist()
    if len(found) > 1:
        raise ValueError(f"{name} is a label map of {found}, expected one label: pass np.array(mask) == {found[0]}")
    return labels > 0


def _check_size(
    shape: tuple[int, ...], name: str, upright: tuple[int, int], stored: tuple[int, int], many: bool = False
) -> None:
    """Raise ValueError unless the shape is (H, W) of the upright picture; with `many`, (K, H, W)."""
    expected = upright[::-1]
    own = shape[1:] if many else shape
    if own == expected:
        return
    if own == stored[::-1]:
        raise ValueError(
            f"{name} has shape {shape}, expected {expected}: the picture's EXIF orientation turns it, and the "
            "mask is of the picture as stored. Make the mask of PIL.ImageOps.exif_transpose(image)."
        )
    remedy = ": resize it, or pass K masks as (K, H, W)"
    if shape[:2] == expected and len(shape) == 3:  # channels last
        remedy = ": pass mask[..., 0]" if shape[2] == 1 else ": take one channel, such as mask[..., 0]"
    elif shape[-2:] == expected and len(shape) == 4:
        remedy = ": pass K masks as (K, H, W)" + (", mask[:, 0]" if shape[1] == 1 else "")
    elif shape[-1:] == (4,) and len(shape) < 3:
        remedy = _OF_BOXES
    elif shape[-1:] == (2,) and len(shape) == 2:
        remedy = _OF_POLYGONS
    raise ValueError(f"{name} has shape {shape}, expected {expected}, the picture's height and width{remedy}")


def unit_mask(mask: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Scale one mask's values to float32 in [0, 1], by the rules in `Preprocess`."""
    kind = mask.dtype.kind
    if kind not in "buif":
        raise TypeError(f"{name} has dtype {mask.dtype}, expected bool, integers or floats")
    low, high = mask.min(), mask.max()
    if kind == "f" and np.isnan(low):
        raise ValueError(
            f"{name} has {np.isnan(mask).sum()} values of NaN, expected 0 to 1: pass np.nan_to_num(mask) to make them 0"
        )
    if kind == "f" and not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise ValueError(
            f"{name} has floats from {low:g} to {high:g}, expected 0 to 1: divide 0..255 by 255, put logits through a "
            "sigmoid"
        )
    if kind in "iu" and (low < 0 or high > 255):
        raise ValueError(
            f"{name} has integers from {low} to {high}, expected 0 and 1, or 0 to 255: make it bool, e.g. mask > 0"
        )
    if kind in "iu" and 1 < high < 128:
        raise ValueError(
            f"{name} has integers from {low} to {high}, expected 0 and 1, or 0 to 255. In a label map choose a label, "
            f"mask == {high}; a soft mask as dim as that make float, mask / 255"
        )
    if kind in "iu" and high > 1 and (label := _label_of(mask.astype(np.uint8, copy=False))) is not None:
        raise ValueError(
            f"{name} has integers from {low} to {high} in flat areas, as a label map has, expected 0 and 1, or 0 to "
            f"255. In a label map choose a label, mask == {label}, without the void; in a mask that is all or nothing "
            f"mask > {low}; a soft mask make float, mask / 255"
        )
    if kind == "f" and 0 < high <= 1 / 255 + _ROUNDING:
        raise ValueError(
            f"{name} has floats from {low:g} to {high:g}, which is a mask of 0 and 1 divided by 255: pass mask > 0"
        )
    if not high > 0:
        raise ValueError(f"{name} is 0 everywhere, expected some foreground: leave it out to mean the whole picture")
    values = mask.astype(np.float32)
    if kind == "f":
        return values.clip(0, 1)
    return values / np.float32(255) if high > 1 else values


def _label_of(mask: NDArray[np.uint8]) -> int | None:
    """Return the label with the largest area if this (H, W) is a label map; None if it is a mask, hard or soft.

    A label map has flat areas, with hard edges, of values that are neither background nor 255. Soft edges are thin,
    blur and ramps change by small steps, and what JPEG leaves is near 0 and 255 or small.
    """
    lowest, light = int(mask.min()), 255 - _RINGING
    if not ((mask > lowest) & (mask < light)).any():  # most masks, at little cost
        return None
    counts = np.bincount(mask.ravel(), minlength=256)
    few = np.count_nonzero(counts) <= _FEW_VALUES
    between = np.zeros(256, bool)
    between[(lowest if few else max(lowest, _RINGING)) + 1 : light] = True
    flat = (mask[:-1, :-1] == mask[1:, :-1]) & (mask[:-1, :-1] == mask[:-1, 1:])
    areas = np.bincount(mask[:-1, :-1][flat], minlength=256) * between
    if areas.sum() < _SHARE * (mask.size - counts[lowest]):
        return None
    (across, rows), (down, columns) = _edges(mask, between), _edges(mask.T, between)
    hard = across + down
    return int(areas.argmax()) if hard > 0 and hard >= _SHARE * (rows + columns) else None


def _edges(mask: NDArray[np.uint8], between: NDArray[np.bool_]) -> tuple[int, int]:
    """Count edges along the rows: hard ones of a value in `between`, with two equal pixels on either side; and all."""
    a, b = mask[:, 1:-2], mask[:, 2:-1]
    edge = a != b
    a, b, before, after = a[edge], b[edge], mask[:, :-3][edge], mask[:, 3:][edge]
    step = np.maximum(a, b) - np.minimum(a, b)
    hard = (before == a) & (after == b) & (step > 1) & (between[a] | between[b])
    return int(hard.sum()), len(a)
