"""How good must a mask be? Ask for names under masks that are wrong in several ways, each to several degrees.

A degree is a target intersection over union (IoU) with the exact mask, so that kinds of errors can be compared.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ... import masks
from ...transforms import NoForeground, RegionLost
from ...zero_shot import TEMPLATES
from ..metrics import Estimate
from ..run import ranking
from ..samples import Sample
from ..subjects import Subject
from ..tables import Cell, Curves, Finding, Table
from ..ways import RegionFeatures, Way, look
from .seeing import CHUNK, does_not_apply, fitting, in_words, namings, own_name, share

NAME, TITLE = "noise", "How good must a mask be?"
WANTED = (0.8, 0.6, 0.4)

Mask = NDArray[np.float32]
Shown = tuple[int, str, float, Mask]  # number of the region, kind of error, wanted IoU, and the spoiled mask


# --- spoil one mask in one way: a larger amount gives a smaller IoU ---


def _dilate(mask: Mask, amount: int, seed: int) -> Mask:
    return masks.dilate(mask, amount)


def _erode(mask: Mask, amount: int, seed: int) -> Mask:
    return masks.erode(mask, amount)


def _shift(mask: Mask, amount: int, seed: int) -> Mask:
    angle = 2 * np.pi * np.random.default_rng(seed).random()
    return masks.shift(mask, round(amount * np.sin(angle)), round(amount * np.cos(angle)))


_BY_PIXELS: dict[str, Callable[[Mask, int, int], Mask]] = {"eroded": _erode, "dilated": _dilate, "shifted": _shift}
_BY_AREA = {"part missing": masks.less, "blobs added": masks.more}
BY_DEGREES = (*_BY_PIXELS, *_BY_AREA)
KINDS = (*BY_DEGREES, "box")
_MASKS = 2 + len(WANTED) * len(BY_DEGREES)  # for each region: exact, box, and all others


def spoil(mask: Mask, kind: str, wanted: float, seed: int = 0) -> Mask:
    """Spoil `mask` (H, W) in the way `kind`, to an IoU as near to `wanted` as whole pixels allow.

    The kind "box" ignores `wanted`. A mask always keeps a pixel above 0.5.

    Raises:
        ValueError: `kind` is not in `KINDS`, or `wanted` not in (0, 1).
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if not 0 < wanted < 1:
        raise ValueError(f"wanted is {wanted}, expected an IoU above 0 and below 1")
    if kind == "box":
        return masks.box(mask)
    if kind in _BY_AREA:
        part = 1 - wanted if kind == "part missing" else 1 / wanted - 1
        changed = masks.at_most(mask, lambda small: _BY_AREA[kind](small, part, np.random.default_rng(seed)))
    else:
        changed = masks.at_most(mask, lambda small: _by_pixels(small, _BY_PIXELS[kind], wanted, seed))
    return changed if changed.max() > 0.5 else mask


def _by_pixels(mask: Mask, change: Callable[[Mask, int, int], Mask], wanted: float, seed: int) -> Mask:
    """Change a mask by the number of pixels that comes nearest to the IoU `wanted`, found by bisection."""
    low, high = 0, max(2, round(mask.sum() ** 0.5))  # IoU is 1 at `low`, and usually too small at `high`
    tried = {0: (1.0, mask)}
    while high - low > 1:
        middle = (low + high) // 2
        changed = change(mask, middle, seed)
        tried[middle] = masks.iou(changed, mask), changed
        low, high = (middle, high) if tried[middle][0] > wanted else (low, middle)
    usable = [found for found in tried.values() if found[1].max() > 0.5]
    return min(usable, key=lambda found: abs(found[0] - wanted))[1]


# --- the probe ---


@dataclass(frozen=True)
class Trial:
    """A region under one mask, and which ways named it."""

    picture: int
    kind: str
    wanted: float  # 1: the exact mask
    iou: float
    right: dict[str, bool]


def trials(
    subject: Subject, samples: Sequence[Sample], templates: Sequence[str], ways: Sequence[Way]
) -> Iterator[Trial]:
    """Ask about all regions that have a name, under the exact mask and under all spoiled ones.

    A mask that vanishes in some way is left out for all ways, and so is a region whose exact mask vanishes.
    """
    for number, sample in enumerate(samples):
        shown = list(_spoiled(sample))
        if not shown:
            continue
        try:
            looks = _look(subject, sample, shown, ways)
        except RegionLost:
            kept = [one for one in shown if not _is_lost(subject, sample, one, ways)]
            asked = {k for k, kind, *_ in kept if kind == "exact"}
            shown = [one for one in kept if one[0] in asked]
            if not shown:
                continue
            looks = _look(subject, sample, shown, ways)
        scored = {}
        for way, seen in zip(ways, looks, strict=True):
            offered = {question.names for question in namings(sample).values()}
            scored[way.name] = {names: seen.scores(subject.names(names, templates).cpu()) for names in offered}
        for row, (k, kind, wanted, mask) in enumerate(shown):
            question = namings(sample)[k]
            seed = f"{own_name(question)} {k}"
            right = {
                way: ranking(scores[question.names][row], seed)[0] == question.answer for way, scores in scored.items()
            }
            yield Trial(number, kind, wanted, masks.iou(mask, sample.masks[k]), right)


def _look(subject: Subject, sample: Sample, shown: Sequence[Shown], ways: Sequence[Way]) -> list[RegionFeatures]:
    stack = np.stack([mask for *_, mask in shown])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoForeground)  # some spoiled masks vanish at the input size
        return [look(subject.model, sample.image, stack, way, CHUNK) for way in ways]


def _is_lost(subject: Subject, sample: Sample, one: Shown, ways: Sequence[Way]) -> bool:
    try:
        _look(subject, sample, [one], ways)
    except RegionLost:
        return True
    return False


def _spoiled(sample: Sample) -> Iterator[Shown]:
    """Yield the exact and all spoiled masks of all named regions."""
    for k in namings(sample):
        mask = sample.masks[k]
        yield k, "exact", 1.0, mask
        for kind in KINDS:
            for wanted in WANTED[:1] if kind == "box" else WANTED:
                yield k, kind, wanted, spoil(mask, kind, wanted, zlib.crc32(f"{sample.key} {k} {kind}".encode()))


def probe(
    subject: Subject,
    samples: Sequence[Sample],
    templates: Sequence[str] = TEMPLATES,
    ways: Sequence[Way] | None = None,
) -> Finding:
    """Report how often each way that fits the subject names a region, against the IoU of the mask."""
    chosen = fitting(subject, ways)
    found = list(trials(subject, samples, templates, chosen)) if chosen else []
    if not found:
        return does_not_apply(NAME, TITLE, "no way fits the model." if not chosen else "no region has a name to find.")
    names = [way.name for way in chosen]
    by_way = {way: _by_degree(found, BY_DEGREES, way) for way in names}
    by_kind = {kind: _by_degree(found, [kind], names[0]) for kind in KINDS}
    curves = [
        Curves(title, "IoU with the exact mask", "named right", lines)
        for title, lines in (("All kinds of wrong masks", by_way), (f"{names[0]}, by what is wrong", by_kind))
    ]
    rows: list[list[Cell]] = [_row("exact", "", [t for t in found if t.kind == "exact"], names)]
    for kind in KINDS:
        for wanted in WANTED:
            if some := [t for t in found if t.kind == kind and t.wanted == wanted]:
                rows.append(_row(kind, "" if kind == "box" else f"{wanted}", some, names))
    table = Table("Named right under wrong masks", ["mask", "wanted IoU", "IoU", *names], rows, _note(found, samples))
    return Finding(NAME, TITLE, _verdict(by_way), [table], curves)


def _verdict(by_way: Mapping[str, Sequence[tuple[float, Estimate]]]) -> str:
    parts = [
        f"{way} {line[-1][1].value:.1%} under the exact mask, {line[0][1].value:.1%} at an IoU of {line[0][0]:.2f}"
        for way, line in by_way.items()
    ]
    return "Named right: " + "; ".join(parts) + "."


def _note(found: Sequence[Trial], samples: Sequence[Sample]) -> str:
    regions = sum(t.kind == "exact" for t in found)
    lost = _MASKS * sum(len(namings(sample)) for sample in samples) - len(found)
    note = f"{regions} regions. What is missing, moved or added is drawn by lot, for all ways alike."
    return note + (f" Left out for all ways: {lost} masks of which some way shows nothing." if lost else "")


def _row(kind: str, wanted: str, some: Sequence[Trial], names: Sequence[str]) -> list[Cell]:
    return [kind, wanted, f"{np.mean([t.iou for t in some]):.2f}", *(in_words(_share(some, way)) for way in names)]


def _share(some: Sequence[Trial], way: str) -> Estimate | None:
    return share([(t.picture, t.right[way]) for t in some])


def _by_degree(found: Sequence[Trial], kinds: Sequence[str], way: str) -> list[tuple[float, Estimate]]:
    """(IoU, share) for each degree, the worst first, and for the exact masks; boxes have one degree."""
    degrees = [[t for t in found if t.kind in kinds and t.wanted == wanted] for wanted in sorted(WANTED)]
    exact = [t for t in found if t.kind == "exact"]
    return [_point(some, way) for some in [*degrees, exact] if some]


def _point(some: Sequence[Trial], way: str) -> tuple[float, Estimate]:
    estimate = _share(some, way)
    assert estimate is not None
    return float(np.mean([t.iou for t in some])), estimate
