"""How small may a region be, and does a larger input help?

The image towers of this package take larger inputs than their own; the positions are interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ...model import CLIP
from ...towers import Tower
from ...transforms import Preprocess
from ...zero_shot import TEMPLATES
from ..metrics import Estimate
from ..run import ranking
from ..samples import Sample
from ..subjects import Subject
from ..tables import Cell, Curves, Finding, Table
from ..ways import Way, look
from .seeing import CHUNK, does_not_apply, fitting, namings, own_name, share

NAME, TITLE = "size", "How small may a region be, and does a larger input help?"
FACTORS = (1.0, 1.5, 2.0)  # input sizes, as multiples of the tower's own
BINS = (0.01, 0.03, 0.1, 0.3)  # shares of the picture that divide regions into groups


def enlarged(tower: Tower, factor: float) -> Tower:
    """A tower of ours with a larger input: `factor` times as many patches in a row, rounded."""
    patch, grid = tower.preprocess.n // tower.grid, round(factor * tower.grid)
    normalise = tower.preprocess.transforms[-1]
    return replace(tower, preprocess=Preprocess(grid * patch, normalise.mean, normalise.std), grid=grid)


@dataclass(frozen=True)
class Trial:
    """Whether one region was named, by one way at one input size."""

    picture: int
    area: float  # its share of the picture
    way: str
    factor: float
    right: bool

    @property
    def bin(self) -> int:
        return int(np.searchsorted(BINS, self.area, side="right"))


def bin_name(number: int) -> str:
    """The share of the picture that a bin covers, in words.

    >>> [bin_name(i) for i in (0, 1, 4)]
    ['below 1%', '1 to 3%', '30% and more']
    """
    if number == 0:
        return f"below {BINS[0]:.0%}"
    if number == len(BINS):
        return f"{BINS[-1]:.0%} and more"
    return f"{100 * BINS[number - 1]:.0f} to {BINS[number]:.0%}"


def regions(
    subject: Subject, samples: Sequence[Sample], templates: Sequence[str], ways: Sequence[Way], factors: Sequence[float]
) -> list[Trial]:
    """Ask about all regions that have a name, by all ways at all input sizes."""
    found = []
    for number, sample in enumerate(samples):
        questions = namings(sample)
        if not questions:
            continue
        masks = sample.masks[list(questions)]
        areas = masks.mean(axis=(1, 2)).tolist()
        for factor in factors:
            change: Callable[[Tower], Tower] | None = partial(enlarged, factor=factor) if factor != 1 else None
            for way in ways:
                seen = look(subject.model, sample.image, masks, way, CHUNK, change)
                for row, (k, question) in enumerate(questions.items()):
                    scores = seen.scores(subject.names(question.names, templates).cpu())[row]
                    right = ranking(scores, f"{own_name(question)} {k}")[0] == question.answer
                    found.append(Trial(number, areas[row], way.name, factor, right))
    return found


def probe(
    subject: Subject,
    samples: Sequence[Sample],
    templates: Sequence[str] = TEMPLATES,
    ways: Sequence[Way] | None = None,
) -> Finding:
    """Report how often each way that fits the subject names a region, by the region's area.

    Models of other packages are tried at their own input size only.
    """
    chosen = fitting(subject, ways)
    factors = FACTORS if isinstance(subject.model, CLIP) else FACTORS[:1]
    found = regions(subject, samples, templates, chosen, factors)
    if not found:
        return does_not_apply(NAME, TITLE, "no way fits the model." if not chosen else "no region has a name to find.")
    bins = sorted({seen.bin for seen in found})
    names = [way.name for way in chosen]
    rows: list[list[Cell]] = []
    for way in names:
        for factor in factors:
            some = [s for s in found if (s.way, s.factor) == (way, factor)]
            rows.append([way, f"{factor:g}x", *(_share([s for s in some if s.bin == b]) for b in bins), _share(some)])
    first = [s for s in found if s.way == names[0]]
    counts = ", ".join(f"{bin_name(b)}: {sum(s.bin == b for s in first) // len(factors)}" for b in bins)
    table = Table(
        "Named right by share of the picture",
        ["way", "input", *map(bin_name, bins), "all"],
        rows,
        f"Regions: {counts}." + ("" if len(factors) > 1 else " Only our own image towers take other sizes."),
    )
    curves = [_curves("The model's own input size", [s for s in found if s.factor == 1], lambda s: s.way)]
    curves.append(_curves(f"{names[0]}, by input size", first, lambda s: f"{s.factor:g}x"))
    return Finding(
        NAME, TITLE, _verdict(names, rows, factors, bins), [table], curves if len(factors) > 1 else curves[:1]
    )


def _verdict(
    names: Sequence[str], rows: Sequence[Sequence[Cell]], factors: Sequence[float], bins: Sequence[int]
) -> str:
    parts = []
    for i, way in enumerate(names):
        totals = [row[-1] for row in rows[i * len(factors) : (i + 1) * len(factors)]]
        smallest = rows[i * len(factors)][2]
        at = ", ".join(
            f"{t.value:.1%} at {f:g}x" for t, f in zip(totals, factors, strict=True) if isinstance(t, Estimate)
        )
        small = f"; {smallest.value:.1%} of regions {bin_name(bins[0])} at 1x" if isinstance(smallest, Estimate) else ""
        parts.append(f"{way} names {at}{small}")
    return ". ".join(parts) + "."


def _share(some: Sequence[Trial]) -> Estimate | None:
    return share([(s.picture, s.right) for s in some])


def _curves(title: str, some: Sequence[Trial], line: Callable[[Trial], str]) -> Curves:
    lines: dict[str, list[tuple[float, float | Estimate]]] = {}
    for name in dict.fromkeys(map(line, some)):
        own = [s for s in some if line(s) == name]
        for b in sorted({s.bin for s in own}):
            members = [s for s in own if s.bin == b]
            estimate = _share(members)
            assert estimate is not None
            lines.setdefault(name, []).append((float(np.mean([s.area for s in members])), estimate))
    return Curves(title, "share of the picture", "named right", lines)
