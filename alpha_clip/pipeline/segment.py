"""The stages that give regions their masks, or pictures their regions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..training.records import BadSample
from .filters import with_regions
from .ledger import Ledger
from .mask_generators import MaskGenerator
from .samples import Mask, Sample, Target
from .segmenters import Segmenter


@dataclass(frozen=True)
class Segment:
    """Boxes to masks. Regions in whose box the segmenter finds nothing are rejected."""

    segmenter: Segmenter

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return with_regions([self._with_masks(sample, ledger) for sample in samples], ledger)

    def _with_masks(self, sample: Sample, ledger: Ledger) -> Sample:
        targets: list[Target] = []
        found = self.segmenter(sample.image, [target.box for target in sample.targets])
        for target, pixels in zip(sample.targets, found, strict=True):
            if pixels.any():
                targets.append(replace(target, mask=Mask.of(pixels)))
            else:
                reason = f"the segmenter found nothing in the box {target.box} of {target.phrase!r:.60}"
                ledger.reject(BadSample(sample.key, reason, "empty mask"), target.number)
        return replace(sample, targets=tuple(targets))


@dataclass(frozen=True)
class SegmentAll:
    """Each of a picture's automatic masks becomes a region with this phrase."""

    generator: MaskGenerator
    phrase: str

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return with_regions([self._with_regions(sample, ledger) for sample in samples], ledger)

    def _with_regions(self, sample: Sample, ledger: Ledger) -> Sample:
        found = (Mask.of(pixels) for pixels in self.generator(sample.image))
        targets = tuple(Target(self.phrase, mask.box, mask=mask, number=i) for i, mask in enumerate(found))
        ledger.regions["read"] += len(targets)
        return replace(sample, targets=targets)
