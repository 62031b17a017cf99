"""Stages that leave out pictures or regions, and count them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .alike import MarkSet, marked
from .ledger import Ledger
from .samples import Box, Mask, Sample, Stage, Target

Duplicates = Literal["both", "picture", "caption", "keep"]

OVERLAP = 0.8  # two masks that share more than this of the smaller one are taken for one thing

_WORDS = 20.0  # where the histogram of phrase lengths ends


@dataclass(frozen=True)
class Sourced:
    """Leaves out pictures that lack one of these fields, such as where they come from."""

    fields: Sequence[str]

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        kept = []
        for sample in samples:
            missing = next((name for name in self.fields if name not in sample.fields), None)
            if missing is None:
                kept.append(sample)
            else:
                ledger.drop(f"without {missing}", len(sample.targets))
        return kept


@dataclass
class Distinct:
    """Leaves out pictures like an earlier one: in look, in caption, or in both.

    The others go through the stages `then`, one after the other. Only pictures that come out of these are remembered,
    by a mark (`alike`), so that no picture is a duplicate of one that was left out. The pipeline makes one `Distinct`
    for each shard, so that shards do not depend on each other.
    """

    by: Duplicates = "both"
    then: Sequence[Stage] = ()

    def __post_init__(self) -> None:
        self._seen = None if self.by == "keep" else MarkSet(self.by)

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return [kept for sample in samples for kept in self._distinct(sample, ledger)]

    def _distinct(self, sample: Sample, ledger: Ledger) -> list[Sample]:
        mark = marked(sample.image, sample.caption) if self._seen else b""
        if self._seen and self._seen.holds(mark):
            ledger.drop("duplicate", len(sample.targets))
            return []
        left = [sample]
        for stage in self.then:
            left = stage(left, ledger)
        if self._seen and left:
            self._seen.add(mark)
        return left


@dataclass(frozen=True)
class Named:
    """Leaves out regions whose score is too low or whose phrase has too few or too many words."""

    score: float = 0.0
    words: tuple[int, int] = (1, 30)

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return chosen(samples, ledger, self._why_not)

    def _why_not(self, sample: Sample, target: Target, ledger: Ledger) -> str | None:
        length = len(target.phrase.split())
        ledger.measure("words in a phrase", length, _WORDS)
        if target.score is not None:
            ledger.measure("score", target.score)
            if target.score < self.score:
                return f"score below {self.score:g}"
        if not self.words[0] <= length <= self.words[1]:
            return f"phrase not of {self.words[0]} to {self.words[1]} words"
        return None


@dataclass(frozen=True)
class Fitting:
    """Leaves out regions whose mask is too small or too large, or lies elsewhere than its box.

    Args:
        area: smallest and largest share of the picture that a mask may cover.
        iou: lowest intersection over union of the box and the box around the mask.
    """

    area: tuple[float, float] = (0.001, 0.95)
    iou: float = 0.5

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return chosen(samples, ledger, self._why_not)

    def _why_not(self, sample: Sample, target: Target, ledger: Ledger) -> str | None:
        mask = mask_of(sample, target)
        overlap = box_iou(target.box, mask.box)
        ledger.measure("IoU of the box and the mask's", overlap)
        if why := _area_not_in(self.area, mask, ledger):
            return why
        return f"IoU of box and mask below {self.iou:g}" if overlap < self.iou else None


@dataclass(frozen=True)
class Sized:
    """Leaves out regions whose mask covers too little or too much of the picture."""

    area: tuple[float, float] = (0.001, 0.95)

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return chosen(samples, ledger, lambda *found: _area_not_in(self.area, mask_of(*found[:2]), ledger))


@dataclass(frozen=True)
class Apart:
    """Non-maximum suppression (NMS) of masks: of regions whose masks overlap, keeps the one with the highest score.

    Masks overlap if they share more than `overlap` of the smaller one's pixels, as a part and its whole do. Among equal
    scores, and regions without a score, the earlier one is kept.
    """

    overlap: float = OVERLAP

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return [self._alone(sample, ledger) for sample in samples]

    def _alone(self, sample: Sample, ledger: Ledger) -> Sample:
        targets, shared = sample.targets, shares([mask_of(sample, target) for target in sample.targets])  # (K, K)
        kept: list[int] = []
        for number in sorted(range(len(targets)), key=lambda number: -(targets[number].score or 0.0)):
            if not (shared[number, kept] > self.overlap).any():
                kept.append(number)
        if out := len(targets) - len(kept):
            ledger.regions[f"shares more than {self.overlap:g} with a better mask"] += out
        return replace(sample, targets=tuple(targets[number] for number in sorted(kept)))


def shares(masks: Sequence[Mask]) -> NDArray[np.float64]:
    """The overlaps (K, K) of the K masks of a picture: the pixels two masks share, as a share of the smaller one."""
    from pycocotools import mask as coco

    packed = [mask.rle for mask in masks]
    covered = np.reshape(coco.iou(packed, packed, [1] * len(packed)), (len(packed),) * 2)  # of each, by each
    found: NDArray[np.float64] = np.maximum(covered, covered.T)
    return found


def _area_not_in(area: tuple[float, float], mask: Mask, ledger: Ledger) -> str | None:
    ledger.measure("mask area, share of the picture", mask.share)
    return None if area[0] <= mask.share <= area[1] else f"mask area not {area[0]:g} to {area[1]:g} of the picture"


def mask_of(sample: Sample, target: Target) -> Mask:
    """The target's mask.

    Raises:
        ValueError: the target has no mask yet.
    """
    if target.mask is None:
        raise ValueError(f"{sample.key}, {target.phrase!r}: there is no mask yet: put `Segment` before this stage")
    return target.mask


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def chosen(
    samples: list[Sample], ledger: Ledger, why_not: Callable[[Sample, Target, Ledger], str | None]
) -> list[Sample]:
    """The samples with only those regions for which `why_not` gives no reason; the others are counted by it."""
    left = []
    for sample in samples:
        targets = []
        for target in sample.targets:
            if why := why_not(sample, target, ledger):
                ledger.regions[why] += 1
            else:
                targets.append(target)
        left.append(replace(sample, targets=tuple(targets)))
    return with_regions(left, ledger)


def with_regions(samples: list[Sample], ledger: Ledger) -> list[Sample]:
    """The samples that have a region left; the others are counted."""
    kept = [sample for sample in samples if sample.targets]
    if len(kept) < len(samples):
        ledger.pictures["no region left"] += len(samples) - len(kept)
    return kept
