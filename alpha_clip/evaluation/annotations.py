"""Annotation files in COCO's layout, and the masks, boxes and pictures that all protocols read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import rle
from ..training.records import BadSample, Picture, make_picture
from .files import read_json
from .samples import UnusableSample

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive


class BadAnnotation(ValueError):
    """An annotation that cannot be used, though the others can. ``problem`` names its kind, for counting."""

    def __init__(self, reason: str, problem: str = "malformed") -> None:
        super().__init__(reason)
        self.problem = problem


@dataclass(frozen=True)
class Listed:
    """A picture as a file of annotations lists it."""

    id: int
    file: str
    size: tuple[int, int]  # (H, W)


class Instances:
    """A file with "images", "annotations" and "categories", such as COCO's ``instances_*.json`` or REFER's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not have this layout.
    """

    def __init__(self, path: Path) -> None:
        found = read_json(path, "annotations in COCO's layout")
        names = ("images", "annotations", "categories")
        if not isinstance(found, dict) or not all(isinstance(found.get(name), list) for name in names):
            keys = sorted(found)[:8] if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"{path} holds {keys}, expected COCO's layout with the lists {', '.join(names)}")
        self.path = path
        try:
            self.pictures = {listed.id: listed for listed in map(_listed, found["images"])}
            ordered = sorted(found["categories"], key=lambda category: category["id"])
            self.categories: dict[int, str] = {category["id"]: category["name"] for category in ordered}
            self._of: dict[int, list[dict[str, Any]]] = {}
            for annotation in found["annotations"]:
                self._of.setdefault(annotation["image_id"], []).append(annotation)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} has a picture, category or annotation that is damaged: {error!r}") from error

    def of(self, picture: int) -> list[dict[str, Any]]:
        """The annotations of a picture."""
        return self._of.get(picture, [])


def _listed(entry: Any) -> Listed:
    size = entry["height"], entry["width"]
    if not all(type(length) is int and length > 0 for length in size) or not isinstance(entry["file_name"], str):
        raise TypeError(f"picture record {entry!r:.100}, expected integer height and width above 0 and a file_name")
    return Listed(entry["id"], entry["file_name"], size)


def segmentation(annotation: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The mask of an annotation as a compressed RLE of `size` (H, W), with its runs checked.

    Raises:
        BadAnnotation: there is no mask, or it has another size, is damaged, or holds no pixel.
        ImportError: pycocotools is not installed.
    """
    found = annotation.get("segmentation")
    if not found:
        raise BadAnnotation("it has no segmentation", "without a mask")
    try:
        packed = rle.of_polygons(found, size) if isinstance(found, list) else rle.checked(found, size)
    except (ValueError, TypeError) as error:
        raise BadAnnotation(f"its segmentation: {error}", "with a damaged mask") from error
    if not rle.area(packed):
        raise BadAnnotation("its mask has not a pixel", "with an empty mask")
    return packed


def box(numbers: Any) -> Box:
    """Convert a box as COCO gives it, (x, y, width, height), to its corners.

    Raises:
        BadAnnotation: it is not a box, or has no area.
    """
    try:
        x, y, width, height = (float(number) for number in numbers)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadAnnotation(f"its box is {numbers!r:.60}, expected four numbers", "without a box") from error
    if not (width > 0 and height > 0 and np.isfinite([x, y, width, height]).all()):
        raise BadAnnotation(f"its box is {numbers!r:.60}, expected a width and a height above 0", "without a box")
    return x, y, x + width, y + height


def open_picture(path: Path, key: str, masks: Sequence[Any]) -> Picture:
    """Read a picture, upright and in RGB, with its masks, each a COCO RLE or a box [x0, y0, x1, y1].

    Raises:
        UnusableSample: the picture is missing, cannot be read, or has another size than the masks.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnusableSample(f"{key}: the picture cannot be read: {error}") from error
    regions = [{"phrase": "region", "mask": mask} for mask in masks]
    try:
        return make_picture(key, data, None, regions)
    except BadSample as error:
        raise UnusableSample(str(error)) from error


def left_out(problems: Counter[str], example: str = "") -> list[str]:
    """Tell the reader in one line which annotations were left out; an empty list if none were."""
    if not problems:
        return []
    counts = ", ".join(f"{problem}: {count}" for problem, count in sorted(problems.items()))
    return [f"Left out: {counts}.{' The first that is damaged: ' + example if example else ''}"]
