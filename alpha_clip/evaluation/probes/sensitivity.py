"""Does the mask decide what the model sees, and does the content under the mask count, or its outline?

A mask-blind model has nearly the same features under different masks, and a silhouette reader names masks by their
shape. Controls: another object's outline on a region, a mask on a grey picture, a mask on the background.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ... import masks
from ...regions import GREY
from ...towers import tower_of
from ...zero_shot import TEMPLATES
from ..samples import Naming, Sample
from ..subjects import Subject
from ..tables import Cell, Finding, Table
from ..ways import Way
from .seeing import (
    apart,
    does_not_apply,
    encode,
    in_words,
    is_named,
    namings,
    no_masks,
    own_name,
    percent,
    pixels,
    see,
    share,
)

NAME, TITLE = "sensitivity", "Does the mask decide, and is it content that counts?"
GRID = 12  # this many pictures are shown under this many masks each
CLEAR = 0.02  # share of a mask on the background that may still overlap an object


@dataclass(frozen=True)
class Causes:
    """Shares, summing to 1, of the variance of features of P pictures under the same M masks.

    They are those of a two-way analysis of variance, summed over the components of the features.
    """

    picture: float  # by the picture, whatever the mask
    mask: float  # by the outline, place and size of the mask, whatever the picture
    both: float  # by the interaction: what lies under the mask


def causes(features: Tensor) -> Causes:
    """Decompose the variance of features (P, M, D); NaN if all are the same.

    >>> causes(torch.eye(2).expand(3, 2, 2))  # two masks; the picture makes no difference
    Causes(picture=0.0, mask=1.0, both=0.0)
    """
    centred = features.double() - features.double().mean(dim=(0, 1))
    of_picture, of_mask = centred.mean(dim=1), centred.mean(dim=0)
    total = centred.square().sum(dim=-1).mean()
    picture, mask = (float(each.square().sum(dim=-1).mean() / total) for each in (of_picture, of_mask))
    return Causes(picture, mask, max(0.0, 1 - picture - mask))


@torch.no_grad()
def measure_causes(subject: Subject, samples: Sequence[Sample]) -> Causes:
    """`causes` with pictures of the first half of the samples and masks of the second half, at most `GRID` each."""
    tower = tower_of(subject.model)
    half = len(samples) // 2
    shown = pixels(subject, samples[:half][:GRID])
    others = samples[half:][:GRID]
    alphas = torch.stack([tower.preprocess(s.image, s.masks[0], geometry="pad")[1] for s in others])
    return causes(torch.stack([tower.encode(rgb[None], alphas).cpu() for rgb in shown]))


@dataclass
class Alike:
    """Cosines of a picture's features under masks, one number per picture."""

    regions: list[float] = field(default_factory=list)  # mean over pairs of regions
    complement: list[float] = field(default_factory=list)  # of a region and its complement
    whole: list[float] = field(default_factory=list)  # of a region and the whole picture

    def add(self, regions: Tensor, complements: Mapping[int, Tensor], whole: Tensor) -> None:
        """Add the features of one picture: (K, D), (D,) by the region's number, and (D,)."""
        if len(regions) > 1:
            self.regions.append(apart(regions))
        if complements:
            self.complement.append(float(np.mean([regions[k] @ other for k, other in complements.items()])))
        self.whole.append(float((regions @ whole).mean()))


CONTROLS = (
    "mask",
    "no mask",
    "another's outline: content named",
    "another's outline: outline named",
    "grey picture: outline named",
    "on the background: outline named",
)


@dataclass
class Sensitivity:
    """What `measure` finds: how alike features are, and answers under each control."""

    alike: Alike = field(default_factory=Alike)
    hits: dict[str, list[tuple[int, bool]]] = field(default_factory=lambda: {name: [] for name in CONTROLS})
    chance: list[float] = field(default_factory=list)  # 1 / number of names, for each question


def measure(subject: Subject, samples: Sequence[Sample], templates: Sequence[str]) -> Sensitivity:
    found = Sensitivity()
    for number, sample in enumerate(samples):
        questions = namings(sample)
        donors = _donors(samples, number, questions)
        swapped = [masks.lay_over(donors[k][0], sample.masks[k]) for k in donors]
        rest = {k: 1 - mask for k, mask in enumerate(sample.masks) if mask.min() < 0.5}
        grey = see(subject, Image.new("RGB", sample.image.size, GREY), sample.masks)
        moved = [masks.aside(mask, sample.masks.max(axis=0)) for mask in sample.masks]
        everywhere = np.ones_like(sample.masks[0])
        parts = [*sample.masks], [*rest.values()], [mask for mask, _ in moved], [everywhere], swapped
        features = see(subject, sample.image, [mask for part in parts for mask in part])
        regions, complements, aside, (whole,), in_swap = features.split([len(part) for part in parts])
        found.alike.add(regions, dict(zip(rest, complements, strict=True)), whole)

        def note(control: str, feature: Tensor, question: Naming, name: str, number: int = number) -> None:
            found.hits[control].append((number, is_named(subject, feature, question, name, templates)))

        for k, question in questions.items():
            name = own_name(question)
            found.chance.append(1 / len(question.names))
            note("mask", regions[k], question, name)
            note("no mask", whole, question, name)
            note("grey picture: outline named", grey[k], question, name)
            if moved[k][1] < CLEAR:
                note("on the background: outline named", aside[k], question, name)
        for k, feature in zip(donors, in_swap, strict=True):
            note("another's outline: content named", feature, questions[k], own_name(questions[k]))
            note("another's outline: outline named", feature, questions[k], donors[k][1])
    return found


def _donors(
    samples: Sequence[Sample], number: int, questions: dict[int, Naming]
) -> dict[int, tuple[NDArray[np.float32], str]]:
    """For each region, the mask and name of a region of another picture; its question offers that name, too."""
    rng = np.random.default_rng(number)
    found = {}
    for k, question in questions.items():
        for other in rng.permutation(len(samples)).tolist():
            if other != number and (donor := next(_named(samples[other], question), None)):
                found[k] = donor
                break
    return found


def _named(sample: Sample, question: Naming) -> Iterator[tuple[NDArray[np.float32], str]]:
    for k, other in namings(sample).items():
        if own_name(other) != own_name(question) and own_name(other) in question.names:
            yield sample.masks[k], own_name(other)


def probe(
    subject: Subject,
    samples: Sequence[Sample],
    templates: Sequence[str] = TEMPLATES,
    ways: Sequence[Way] | None = None,
) -> Finding:
    """Report how far masks move the features, and what is named when outline and content disagree."""
    if not subject.takes_masks:
        return does_not_apply(NAME, TITLE, no_masks(subject))
    if len(samples) < 4:
        return does_not_apply(NAME, TITLE, f"it takes 4 pictures or more, and there are {len(samples)}.")
    found, why = measure(subject, samples, templates), measure_causes(subject, samples)
    between = apart(encode(subject, pixels(subject, samples)))
    named = {control: share(hits) for control, hits in found.hits.items()}
    verdict = (
        f"Of what its features differ by, {why.both:.0%} is what lies under the mask, {why.picture:.0%} the picture "
        f"whatever the mask, {why.mask:.0%} the mask whatever the picture. With another object's outline on a region "
        f"it names the content in {percent(named[CONTROLS[2]])} and the outline in {percent(named[CONTROLS[3]])}."
    )
    rows: list[list[Cell]] = [
        ["two regions of a picture", _mean(found.alike.regions)],
        ["a region and all else", _mean(found.alike.complement)],
        ["a region and the whole picture", _mean(found.alike.whole)],
        ["two whole pictures", f"{between:.3f}"],
    ]
    variance: list[list[Cell]] = [
        ["the picture, whatever the mask", f"{why.picture:.1%}"],
        ["the mask, whatever the picture", f"{why.mask:.1%}"],
        ["what lies under the mask", f"{why.both:.1%}"],
    ]
    chance = f"Chance is {np.mean(found.chance):.1%}." if found.chance else ""
    tables = [
        Table("How alike features are", ["", "cosine"], rows),
        Table(
            f"What features differ by, {GRID} pictures under {GRID} masks each", ["", "share of the variance"], variance
        ),
        Table("Controls", ["", "share"], [[control, in_words(named[control])] for control in CONTROLS], chance),
    ]
    return Finding(NAME, TITLE, verdict, tables)


def _mean(values: Sequence[float]) -> str | None:
    return f"{np.mean(values):.3f}" if values else None
