"""Which regions look most like what their class is called."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from ..evaluation.subjects import Subject
from ..towers import Tower, tower_of
from .cutting import CONTEXT, cut_out
from .filters import chosen, mask_of
from .ledger import Ledger
from .samples import Sample, Target

TEMPLATES = ("a photo of a {}.",)

_DIGITS = 4  # of a score; further ones may depend on the number of threads


def features(tower: Tower, images: Iterable[Image.Image], chunk: int = 32) -> Tensor:
    """(N, D) of N pictures, at least one, of unit length; `chunk` are seen at a time, and none is cut."""
    left, found = iter(images), []
    while part := [tower.preprocess(image, geometry="pad") for image in islice(left, chunk)]:
        found.append(tower.encode(torch.stack(part)))
    return torch.cat(found)


class Score:
    """Gives each region its score: the cosine of the object alone, as `cut_out` makes it, and its phrase.

    Leaves out regions below the `lowest`.
    """

    def __init__(self, subject: Subject, lowest: float = 0.0, context: float = CONTEXT) -> None:
        self.subject, self.lowest, self.context = subject, lowest, context
        self._tower = tower_of(subject.model)

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return chosen([self._scored(sample) for sample in samples], ledger, self._why_not)

    def _scored(self, sample: Sample) -> Sample:
        masks = (mask_of(sample, target) for target in sample.targets)
        seen = features(self._tower, (cut_out(sample.image, mask, self.context)[0] for mask in masks))  # (K, D)
        names = self.subject.names([target.phrase for target in sample.targets], TEMPLATES)  # (K, D)
        scores = (seen * names).sum(1).tolist()
        scored = zip(sample.targets, scores, strict=True)
        return replace(sample, targets=tuple(replace(target, score=round(score, _DIGITS)) for target, score in scored))

    def _why_not(self, sample: Sample, target: Target, ledger: Ledger) -> str | None:
        assert target.score is not None
        ledger.measure("CLIP score of a mask", target.score)
        return f"CLIP score below {self.lowest:g}" if target.score < self.lowest else None


@dataclass
class Best:
    """The `keep` regions with the highest scores of those it is shown, and no more in memory.

    Of equal scores the picture with the lower number is first, and of one picture the region with the lower number.
    """

    keep: int
    _heap: list[tuple[float, int, int, Target]] = field(default_factory=list)  # the worst one first

    def add(self, picture: int, targets: Iterable[Target], ledger: Ledger) -> None:
        """Show it the regions of a picture, all with a score. Those that others push out go into the ledger."""
        for target in targets:
            assert target.score is not None
            heapq.heappush(self._heap, (target.score, -picture, -target.number, target))
            if len(self._heap) > self.keep:
                heapq.heappop(self._heap)
                ledger.regions[f"not among the best {self.keep} of the class"] += 1

    def pictures(self) -> dict[int, tuple[Target, ...]]:
        """The regions of each picture that has some, by number."""
        found: dict[int, list[Target]] = {}
        for _, picture, _, target in sorted(self._heap, reverse=True, key=lambda entry: entry[1:3]):
            found.setdefault(-picture, []).append(target)
        return {picture: tuple(targets) for picture, targets in found.items()}
