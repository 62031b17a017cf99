"""Name the objects of a data set in COCO's layout: which of its categories is each?"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import rle
from .annotations import BadAnnotation, Instances, Listed, left_out, open_picture, segmentation
from .files import check_folder, digests
from .samples import Column, Naming, Sample, Task, unique_keys
from .tune import add_hold_back, is_held_back

METHODS = ("alpha", "alpha_crop", "alpha_box", "whole", "crop", "masked_crop", "cut_out", "maskclip", "alpha + crop")
GROUPS = ("small", "medium", "large")  # by area, as in COCO's own evaluation
_AREAS = (32**2, 96**2)  # pixels at which the first two groups end
_ANNOTATIONS, _IMAGES = "annotations/instances_val2017.json", "val2017"


@dataclass(frozen=True)
class Object:
    """An object to ask about."""

    mask: Mapping[str, Any]  # a checked RLE
    category: int  # its number among the names
    group: str


def task(path: Path, images: Path, hold_back: float = 0.0, validation: bool = False) -> Task:
    """Ask about all objects with a mask, except crowds.

    Args:
        path: annotations in COCO's layout.
        images: the folder of their pictures.
        hold_back: share of the pictures kept for validation only.
        validation: use that share instead of the rest.

    Raises:
        FileNotFoundError: the annotations or the folder are missing.
        ValueError: the annotations are damaged, or none can be used.
    """
    found = Instances(path)
    check_folder(images, "the pictures of the annotations")
    numbers = {category: i for i, category in enumerate(found.categories)}
    problems: Counter[str] = Counter()
    examples: list[str] = []
    asked: list[tuple[Listed, list[Object]]] = []
    for picture in found.pictures.values():
        if hold_back and is_held_back(picture.file, hold_back) != validation:
            continue
        objects = _objects(found, picture, numbers, problems, examples)
        if objects:
            asked.append((picture, objects))
    notes = left_out(problems, next(iter(examples), ""))
    if not asked:
        raise ValueError(f"{path} has no object to ask about, expected some with a segmentation; {''.join(notes)}")
    names = tuple(found.categories.values())

    keys = unique_keys([picture.file for picture, _ in asked])

    def read(number: int) -> Sample:
        picture, objects = asked[number]
        shown = open_picture(images / picture.file, keys[number], [one.mask for one in objects])
        questions = tuple(Naming(k, names, one.category, one.group) for k, one in enumerate(objects))
        return Sample(keys[number], shown.image, np.stack([region.mask for region in shown.regions]), questions)

    columns = [Column("top-1"), Column("top-5", k=5), Column("mean per class", per_class=True)]
    columns += [Column(group, (group,)) for group in GROUPS]
    identity = {**digests(path), "held back": hold_back, "validation": validation}
    pictures = [str((images / picture.file).resolve()) for picture, _ in asked]
    return Task("coco", keys, read, columns, identity=identity, pictures=pictures, notes=notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument(
        "--annotations", default=_ANNOTATIONS, metavar="FILE", help="annotations in DIR; default: %(default)s"
    )
    parser.add_argument("--images", default=_IMAGES, metavar="FOLDER", help="pictures in DIR; default: %(default)s")
    parser.add_argument("--validation", metavar="FILE", help="other annotations in DIR, for --tune")
    parser.add_argument(
        "--validation-images", metavar="FOLDER", help="pictures of --validation; default: those of --images"
    )
    add_hold_back(parser)


def from_arguments(args: argparse.Namespace, validation: bool = False) -> Task:
    check_folder(args.data, "the data, with annotations/ and a folder of pictures")
    if validation and args.validation:
        return task(args.data / args.validation, args.data / (args.validation_images or args.images))
    return task(args.data / args.annotations, args.data / args.images, args.hold_back, validation)


def _objects(
    found: Instances, picture: Listed, numbers: Mapping[int, int], problems: Counter[str], examples: list[str]
) -> list[Object]:
    """The objects of a picture that can be asked about; `problems` counts the rest."""
    objects = []
    for annotation in found.of(picture.id):
        if annotation.get("iscrowd"):
            problems["crowds"] += 1
            continue
        try:
            objects.append(_object(annotation, picture.size, numbers))
        except BadAnnotation as error:
            problems[error.problem] += 1
            examples.append(f"{annotation.get('id')} of {picture.file}: {error}")
    return objects


def _object(annotation: Mapping[str, Any], size: tuple[int, int], numbers: Mapping[int, int]) -> Object:
    category = annotation.get("category_id")
    if not isinstance(category, int) or category not in numbers:
        raise BadAnnotation(f"its category is {category!r:.40}, which the file does not name", "of unknown category")
    mask = segmentation(annotation, size)
    area = annotation.get("area")
    covers = area if isinstance(area, (int, float)) else rle.area(mask)
    return Object(mask, numbers[category], GROUPS[sum(covers >= end for end in _AREAS)])
