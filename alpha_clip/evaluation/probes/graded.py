"""Masks with values between 0 and 1: is alpha = 1/2 half-way?

Alpha-CLIP was trained on 0 and 1 only. For comparison, each answer is also given by interpolating between the features
of plain masks, which needs no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...zero_shot import TEMPLATES, joined
from ..samples import Sample
from ..subjects import Subject
from ..tables import Curves, Finding, Table
from ..ways import Way
from .seeing import clip_of, does_not_apply, obstacle, see
from .unions import names_of

NAME, TITLE = "graded", "Is half a mask half-way?"
BACKGROUNDS = (0.0, 0.25, 0.5, 0.75, 1.0)  # alpha outside a region
WEIGHTS = ((1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (0.5, 1.0), (0.0, 1.0))  # alpha of two regions


@dataclass(frozen=True)
class Steps:
    """Measurements at S masks between two extremes; each (S,)."""

    wanted: Tensor  # the share that the second text should have
    seen: Tensor  # the share that it has under the mask
    between: Tensor  # the share that it has by features interpolated between the extremes
    position: Tensor  # 0 to 1: the feature's place on the line between those of the extremes, without the texts

    @property
    def distances(self) -> tuple[float, float]:
        """The mean distances of `seen` and of `between` from `wanted`; 0 is best, and a constant 1/2 has 0.3."""
        return tuple(float((x - self.wanted).abs().mean()) for x in (self.seen, self.between))  # type: ignore[return-value]


def region_and_all(subject: Subject, sample: Sample, caption: str | None, templates: Sequence[str]) -> list[Steps]:
    """For each named region, raise alpha outside it from 0 to 1: its name should give way to the caption.

    The caption is of the whole picture; None: the names of all regions.
    """
    names = names_of(sample)
    caption = caption or joined([*names.values()] or [""])
    found = []
    for k, name in names.items():
        features = see(subject, sample.image, [np.maximum(sample.masks[k], b) for b in BACKGROUNDS])
        found.append(_steps(subject, features, torch.tensor(BACKGROUNDS), [name, caption], templates))
    return found


def two_regions(subject: Subject, sample: Sample, templates: Sequence[str]) -> list[Steps]:
    """For each pair of named regions, move alpha from one to the other, from (1, 0) to (0, 1)."""
    names, weights = names_of(sample), torch.tensor(WEIGHTS)
    wanted = weights[:, 1] / weights.sum(dim=1)
    found = []
    for i, j in combinations(names, 2):
        one, other = sample.masks[[i, j]]
        features = see(subject, sample.image, [np.maximum(v * one, w * other) for v, w in WEIGHTS])
        found.append(_steps(subject, features, wanted, [names[i], names[j]], templates))
    return found


@torch.no_grad()
def _steps(subject: Subject, features: Tensor, wanted: Tensor, texts: Sequence[str], templates: Sequence[str]) -> Steps:
    first, last = features[0], features[-1]
    between = F.normalize((1 - wanted)[:, None] * first + wanted[:, None] * last, dim=-1)
    text, scale = subject.names(texts, templates).cpu(), clip_of(subject).logit_scale.float().exp().cpu()
    seen, interpolated = ((scale * x @ text.T).softmax(dim=-1)[:, 1] for x in (features, between))
    line = last - first
    return Steps(wanted, seen, interpolated, (features - first) @ line / line.square().sum().clamp_min(1e-12))


def probe(
    subject: Subject,
    samples: Sequence[Sample],
    templates: Sequence[str] = TEMPLATES,
    ways: Sequence[Way] | None = None,
) -> Finding:
    """Follow names and captions from one extreme of alpha to the other."""
    if (why := obstacle(subject)) is not None:
        return does_not_apply(NAME, TITLE, why)
    around = [s for x in samples for s in region_and_all(subject, x, None, templates)]
    pairs = [s for sample in samples for s in two_regions(subject, sample, templates)]
    asked = {"a region, the rest at alpha b": around, "two regions, weighted": pairs}
    if not around:
        return does_not_apply(NAME, TITLE, "no region has a name to find.")
    distances = {what: np.mean([s.distances for s in steps], axis=0) for what, steps in asked.items() if steps}
    rows = [[what, str(len(asked[what])), *(f"{x:.3f}" for x in found)] for what, found in distances.items()]
    curves = [
        Curves(what, "share wanted", "share of the second text", _lines(steps))
        for what, steps in asked.items()
        if steps
    ]
    one, other = distances["a region, the rest at alpha b"]
    verdict = (
        f"With the rest of the picture at alpha b, the caption's share is {one:.3f} from b; features interpolated "
        f"between region and whole picture are {other:.3f} from it. "
        + ("Interpolation is nearer." if other < one else "Graded masks are nearer.")
    )
    note = "0 is best; a constant 1/2 has 0.300."
    table = Table("Mean distance from the share wanted", ["asked", "times", "graded masks", "interpolated"], rows, note)
    return Finding(NAME, TITLE, verdict, [table], curves)


def _lines(steps: Sequence[Steps]) -> dict[str, list[tuple[float, float]]]:
    wanted = steps[0].wanted.tolist()
    values = {
        "graded masks": [s.seen for s in steps],
        "interpolated features": [s.between for s in steps],
        "place of the feature between the extremes": [s.position for s in steps],
        "wanted": [steps[0].wanted],
    }
    return {name: list(zip(wanted, torch.stack(x).mean(dim=0).tolist(), strict=True)) for name, x in values.items()}
