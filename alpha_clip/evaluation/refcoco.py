"""Referring expressions: which of a picture's boxes is meant by a phrase? RefCOCO, RefCOCO+ and RefCOCOg.

A choice is right if its box overlaps the one that is meant by more than half (IoU > 0.5).
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import refer
from .annotations import BadAnnotation, Box, box, left_out, open_picture, segmentation
from .files import digests, read_json
from .refer import Refer
from .samples import Column, Referring, Sample, Task, unique_keys

METHODS = (
    "alpha:geometry=squash + alpha_blurred:geometry=squash",
    "alpha + alpha_blurred",
    "alpha",
    "whole",
    "crop",
    "red_circle",
    "crop + blur",
)
PROMPT = "a photo of {}"  # ReCLIP's


@dataclass(frozen=True)
class Candidate:
    """A region that a phrase could mean."""

    box: Box
    mask: Any  # a COCO RLE, or a box of whole pixels


@dataclass(frozen=True)
class _Asked:
    """A picture's candidates, and the questions about them."""

    picture: int
    choices: Sequence[Candidate]
    questions: tuple[Referring, ...]


def task(found: Refer, candidates: Path | None = None, masks: str = "segmentation", prompt: str = PROMPT) -> Task:
    """Ask about all phrases of a split.

    Args:
        candidates: a file of detections that `detections` can read; None: all annotated objects of the picture.
        masks: "segmentation", or "box", which fills the boxes.
        prompt: the text around each phrase.

    Raises:
        FileNotFoundError: `candidates` is missing.
        ValueError: `candidates` is not such a file, or has no segmentation; no phrase can be asked about.
    """
    boxes = detections(candidates) if candidates else None
    problems: Counter[str] = Counter()
    asked = list(_asked(found, boxes, masks, prompt, problems))
    if not asked:
        raise ValueError(f"nothing can be asked about in {found.identity}; {' '.join(left_out(problems))}")
    keys = unique_keys([found.instances.pictures[one.picture].file for one in asked])

    def read(number: int) -> Sample:
        one = asked[number]
        shown = open_picture(found.path(one.picture), keys[number], [choice.mask for choice in one.choices])
        return Sample(keys[number], shown.image, np.stack([region.mask for region in shown.regions]), one.questions)

    offered = digests(candidates) if candidates else "annotated objects"
    identity = {**found.identity, "masks": masks, "prompt": prompt, "candidates": offered}
    pictures = [str(found.path(one.picture).resolve()) for one in asked]
    notes = [_at_most(asked), *left_out(problems)]
    return Task("refcoco", keys, read, [Column("IoU > 0.5")], ("{}",), identity, pictures, notes)


def detections(path: Path) -> dict[int, list[Mapping[str, Any]]]:
    """Read the detected boxes of each picture.

    The file is in the format of ReCLIP, ``{picture: [[x, y, width, height], ...]}``; of MAttNet, a list of
    ``{"image_id", "box", ...}``, with an "rle" if there are masks; or of COCO's results, a list of
    ``{"image_id", "bbox", "segmentation", ...}``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has none of these formats.
    """
    found = read_json(path, "detected boxes")
    by_picture: dict[int, list[Mapping[str, Any]]] = {}
    try:
        if isinstance(found, dict):
            return {int(picture): [{"bbox": numbers} for numbers in boxes] for picture, boxes in found.items()}
        for detection in found:
            shape = detection.get("segmentation") or detection.get("rle")
            numbers = detection["box"] if "box" in detection else detection["bbox"]
            by_picture.setdefault(int(detection["image_id"]), []).append({"bbox": numbers, "segmentation": shape})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a file of detections ({error!r:.60}): expected {{picture: [[x, y, width, height], ...]}}, "
            'or a list of {"image_id": ..., "box" or "bbox": [x, y, width, height]}'
        ) from error
    return by_picture


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes.

    >>> iou((0, 0, 2, 1), (1, 0, 3, 1))
    0.3333333333333333
    """
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    both = max(across, 0.0) * max(down, 0.0)
    return both / (_area(one) + _area(other) - both)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of refcoco/, refcoco+/, refcocog/"
    )
    refer.add_arguments(parser)
    parser.add_argument(
        "--candidates", type=Path, metavar="FILE", help="file of detected boxes; default: the annotated objects"
    )
    parser.add_argument(
        "--masks",
        default="segmentation",
        choices=("segmentation", "box"),
        help="masks of the candidates; default: %(default)s",
    )
    parser.add_argument("--prompt", default=PROMPT, help="text around each phrase; default: ReCLIP's")


def from_arguments(args: argparse.Namespace, validation: bool = False) -> Task:
    return task(refer.from_arguments(args, validation), args.candidates, args.masks, args.prompt)


def _asked(
    found: Refer,
    boxes: Mapping[int, list[Mapping[str, Any]]] | None,
    masks: str,
    prompt: str,
    problems: Counter[str],
) -> Iterator[_Asked]:
    for picture, references in found.by_picture().items():
        size, annotations = found.instances.pictures[picture].size, found.instances.of(picture)
        offered = annotations if boxes is None else boxes.get(picture, []) or [_everything(size)]
        choices = _candidates(offered, size, masks, problems)
        meant = {annotation.get("id"): annotation.get("bbox") for annotation in annotations}
        questions: list[Referring] = []
        for reference in references:
            try:
                right = box(meant.get(reference.annotation))
            except BadAnnotation:
                problems["phrases about an annotation without a box"] += len(reference.phrases)
                continue
            answers = frozenset(k for k, choice in enumerate(choices) if iou(choice.box, right) > 0.5)
            questions += [Referring(prompt.replace("{}", phrase), answers) for phrase in reference.phrases]
        if choices and questions:
            yield _Asked(picture, choices, tuple(questions))
        elif questions:
            problems["phrases about a picture without candidates"] += len(questions)


def _candidates(
    offered: Sequence[Mapping[str, Any]], size: tuple[int, int], masks: str, problems: Counter[str]
) -> list[Candidate]:
    """The annotations or detections that have a box and a mask within the picture; `problems` counts the rest."""
    found = []
    for annotation in offered:
        if annotation.get("iscrowd"):
            problems["crowds"] += 1
            continue
        try:
            corners = box(annotation.get("bbox"))
            filled = annotation.get("whole") or masks == "box"
            found.append(Candidate(corners, _pixels(corners, size) if filled else segmentation(annotation, size)))
        except BadAnnotation as error:
            if error.problem == "without a mask":
                raise ValueError(
                    "a candidate has no segmentation: choose --masks box, or give detections with a segmentation"
                ) from error
            problems[error.problem] += 1
    return found


def _everything(size: tuple[int, int]) -> Mapping[str, Any]:
    """The whole picture, which ReCLIP takes if nothing was detected."""
    return {"bbox": [0, 0, size[1], size[0]], "whole": True}


def _pixels(corners: Box, size: tuple[int, int]) -> list[int]:
    """The whole pixels of a picture (H, W) that a box touches."""
    x0, y0, x1, y1 = corners
    inside = [
        max(0, math.floor(x0)),
        max(0, math.floor(y0)),
        min(size[1], math.ceil(x1)),
        min(size[0], math.ceil(y1)),
    ]
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        raise BadAnnotation(f"its box {corners} lies outside the picture", "outside the picture")
    return inside


def _area(corners: Box) -> float:
    return (corners[2] - corners[0]) * (corners[3] - corners[1])


def _at_most(asked: Sequence[_Asked]) -> str:
    """Tell the reader the best possible share with these candidates, and that of chance."""
    pairs = [(len(question.answers), len(one.choices)) for one in asked for question in one.questions]
    possible = np.mean([right > 0 for right, _ in pairs])
    chance = np.mean([right / count for right, count in pairs])
    return f"Of {len(pairs)} phrases, {possible:.1%} have a right candidate; a choice by lot is right for {chance:.1%}."
