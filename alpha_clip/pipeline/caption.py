"""The stage that gives regions their words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from .. import rle
from ..regions import cropped
from ..training.records import BadSample
from .captioners import Captioner
from .filters import with_regions
from .ledger import Ledger
from .samples import Sample, Target

Background = Literal["white", "kept"]


@dataclass(frozen=True)
class Caption:
    """Each region's phrase becomes what the captioner says of the crop around its mask.

    The background is made white, as the paper does for its second kind of data, or kept. The crop is `context` times as
    long on each side as the box around the mask. Regions of which the captioner says nothing are rejected.

    Raises:
        ValueError: (when called) a region has no mask yet.
    """

    captioner: Captioner
    background: Background = "white"
    context: float = 1.2

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return with_regions([self._with_words(sample, ledger) for sample in samples], ledger)

    def _with_words(self, sample: Sample, ledger: Ledger) -> Sample:
        if not sample.targets:
            return sample
        targets = []
        texts = self.captioner([self._crop(sample, target) for target in sample.targets])
        for target, text in zip(sample.targets, texts, strict=True):
            if text.strip():
                targets.append(replace(target, phrase=text.strip()))
            else:
                reason = f"the captioner said nothing of the region in the box {target.box}"
                ledger.reject(BadSample(sample.key, reason, "empty text"), target.number)
        return replace(sample, targets=tuple(targets))

    def _crop(self, sample: Sample, target: Target) -> Image.Image:
        if target.mask is None:
            raise ValueError(f"{sample.key}, {target.phrase!r}: there is no mask yet: put `Segment` before this stage")
        mask = rle.decode(target.mask.rle, sample.image.size[::-1])
        picture = sample.image
        if self.background == "white":
            white = Image.new("RGB", picture.size, "white")
            picture = Image.composite(picture, white, Image.fromarray(mask))
        return cropped(picture, mask.astype(np.float32), self.context)
