"""The stages that caption regions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
from PIL import Image

from .. import rle
from ..regions import cropped
from ..training.records import BadSample
from .captioners import Captioner
from .cutting import CONTEXT, cut_out
from .filters import mask_of, with_regions
from .ledger import Ledger
from .samples import Sample, Target

Background = Literal["white", "kept"]

# What captioners say of the white around an object, in the words that the paper's authors look for and some more.
_WHITE = r" (?:(?:a|an|the) )?(?:(?:plain|pure|solid|blank) )?white background\b"
_BEFORE = re.compile(rf"^{_WHITE} (?:with|and|of)\b", re.I)
_LINK = "is|are|has|have|cut|sticking|out|isolated|alone|shown|set|and|with|of|to|the|front|top|middle|next"
_PLACE = "in|on|over|across|against"
_AFTER = re.compile(rf",?(?: (?:{_LINK}|{_PLACE}))*{_WHITE}", re.I)


@dataclass(frozen=True)
class Caption:
    """Replaces the phrase of each region by what the captioner says of it.

    The captioner sees the object alone on white, as in the paper's second kind of data (`cut_out`), or with its
    background: the crop that is `context` times as long on each side as the box around the mask. It sees `chunk` of
    them at a time. Regions of which it says nothing are rejected.

    Raises:
        ValueError: (when called) a region has no mask yet, or the captioner does not give a text for each crop.
    """

    captioner: Captioner
    background: Background = "white"
    context: float = CONTEXT
    chunk: int = 8

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        texts = self._said(samples)
        return with_regions([self._with_words(sample, texts, ledger) for sample in samples], ledger)

    def _said(self, samples: list[Sample]) -> Iterator[str]:
        crops = (self._crop(sample, target) for sample in samples for target in sample.targets)
        while some := list(islice(crops, self.chunk)):
            texts = self.captioner(some)
            if len(texts) != len(some):
                raise ValueError(
                    f"the captioner gave {len(texts)} texts, expected one for each of {len(some)} pictures"
                )
            yield from texts

    def _crop(self, sample: Sample, target: Target) -> Image.Image:
        mask = mask_of(sample, target)
        if self.background == "white":
            return cut_out(sample.image, mask, self.context)[0]
        pixels = rle.decode(mask.rle, sample.image.size[::-1]).astype(np.float32)
        return cropped(sample.image, pixels, self.context)

    def _with_words(self, sample: Sample, texts: Iterator[str], ledger: Ledger) -> Sample:
        targets = []
        of_sample = islice(texts, len(sample.targets))  # the next sample's texts follow
        for target, text in zip(sample.targets, of_sample, strict=True):
            if text.strip():
                targets.append(replace(target, phrase=text.strip()))
            else:
                reason = f"the captioner said nothing of the region in the box {target.box}"
                ledger.reject(BadSample(sample.key, reason, "empty text"), target.number)
        return replace(sample, targets=tuple(targets))


@dataclass(frozen=True)
class Join:
    """Joins the phrase of each region, a caption, with the name of its class, as `joined` does."""

    name: str

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return [
            replace(sample, targets=tuple(replace(t, phrase=joined(t.phrase, self.name)) for t in sample.targets))
            for sample in samples
        ]


def joined(caption: str, name: str) -> str:
    """Return the caption and the name, joined as the paper's authors do.

    A name that the caption holds is not repeated. What the caption says of a white background is left out.

    >>> joined("a fish with an open mouth on a white background.", "tench")
    'a fish with an open mouth, probably tench'
    >>> joined("A small tench", "tench")
    'A small tench'
    """
    said = _AFTER.sub("", _BEFORE.sub("", f" {caption.strip()}")).strip(" ,.")
    if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said, re.I):
        return said
    return f"{said}, probably {name}" if said else name
