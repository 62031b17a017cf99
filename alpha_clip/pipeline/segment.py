"""The stages that make regions: masks for boxes, and all masks of a picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..training.records import BadSample
from .filters import with_regions
from .ledger import Ledger
from .mask_generators import MaskGenerator
from .samples import Mask, Sample, Target
from .segmenters import Segmenter


@dataclass(frozen=True)
class Segment:
    """Gives each region the mask of its box. Regions in whose box the segmenter finds nothing are rejected.

    Raises:
        ValueError: (when called) the segmenter gives masks of another size than the picture, or not one for each box.
    """

    segmenter: Segmenter

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return with_regions([self._with_masks(sample, ledger) for sample in samples], ledger)

    def _with_masks(self, sample: Sample, ledger: Ledger) -> Sample:
        if not sample.targets:  # SAM fails without boxes
            return sample
        targets: list[Target] = []
        found = iter(self.segmenter(sample.image, [target.box for target in sample.targets]))
        for number, target in enumerate(sample.targets):
            if (mask := next(found, None)) is None:
                raise ValueError(f"{sample.key}: the segmenter gave {number} masks, {_one_each(sample)}")
            pixels = _checked(mask, sample, "segmenter")
            if pixels.any():
                targets.append(replace(target, mask=Mask.of(pixels)))
            else:
                reason = f"the segmenter found nothing in the box {target.box} of {target.phrase!r:.60}"
                ledger.reject(BadSample(sample.key, reason, "empty mask"), target.number)
        if next(found, None) is not None:
            raise ValueError(f"{sample.key}: the segmenter gave too many masks, {_one_each(sample)}")
        return replace(sample, targets=tuple(targets))


@dataclass(frozen=True)
class SegmentAll:
    """Makes a region of each mask that the generator finds in a picture, all with the same phrase.

    Raises:
        ValueError: (when called) the generator gives masks of another size than the picture.
    """

    generator: MaskGenerator
    phrase: str

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return with_regions([self._with_regions(sample, ledger) for sample in samples], ledger)

    def _with_regions(self, sample: Sample, ledger: Ledger) -> Sample:
        found = (Mask.of(_checked(mask, sample, "mask generator")) for mask in self.generator(sample.image))
        targets = tuple(Target(self.phrase, mask.box, mask=mask, number=i) for i, mask in enumerate(found))
        ledger.regions["read"] += len(targets)
        return replace(sample, targets=targets)


def _one_each(sample: Sample) -> str:
    return f"expected one for each of the {len(sample.targets)} boxes"


def _checked(mask: NDArray[Any], sample: Sample, giver: str) -> NDArray[np.bool_]:
    expected = sample.image.size[::-1]
    if np.shape(mask) != expected:
        raise ValueError(
            f"{sample.key}: the {giver} gave a mask of shape {np.shape(mask)}, expected {expected}, the picture's "
            "height and width: resize its masks"
        )
    return mask
