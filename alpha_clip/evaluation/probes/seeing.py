"""Show pictures to a subject, and turn its answers into shares: what the probes have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...model import CLIP
from ...regions import embed_regions
from ...towers import tower_of
from .. import metrics
from ..metrics import Estimate, Hits
from ..run import ranking
from ..samples import Naming, Sample
from ..subjects import Subject
from ..tables import Finding
from ..ways import Way, parse

CHUNK = 64  # masks, or pictures, at a time
WAYS = ("alpha", "crop", "masked_crop")  # compared by default


def clip_of(subject: Subject) -> CLIP:
    """The model of a subject, which must be one of ours.

    Raises:
        ValueError: it is another library's.
    """
    if not isinstance(subject.model, CLIP):
        raise ValueError(not_ours(subject))
    return subject.model


def pixels(subject: Subject, samples: Sequence[Sample]) -> Tensor:
    """Prepare whole pictures, padded to squares: (P, 3, n, n)."""
    prepare = tower_of(subject.model).preprocess
    return torch.stack([prepare(sample.image, geometry="pad") for sample in samples])


def encode(subject: Subject, rgb: Tensor) -> Tensor:
    """Encode whole pictures from `pixels`: (P, D) on the CPU, of unit length."""
    tower = tower_of(subject.model)
    return torch.cat([tower.encode(part) for part in rgb.split(CHUNK)]).cpu()


def see(subject: Subject, image: Image.Image, masks: Iterable[NDArray[np.float32]]) -> Tensor:
    """Encode a picture under K masks: (K, D) on the CPU, of unit length."""
    return embed_regions(subject.model, image, np.stack(list(masks)), "alpha", chunk=CHUNK).float().cpu()


def namings(sample: Sample) -> dict[int, Naming]:
    """The first `Naming` question about each region that has one, by the region's number."""
    found: dict[int, Naming] = {}
    for question in sample.questions:
        if isinstance(question, Naming):
            found.setdefault(question.region, question)
    return found


def own_name(question: Naming) -> str:
    return question.names[question.answer]


def fitting(subject: Subject, ways: Sequence[Way] | None) -> list[Way]:
    """The ways that fit the subject; None: those of `WAYS`."""
    return [way for way in ways or [parse(way) for way in WAYS] if way.fits(subject)]


def is_named(subject: Subject, feature: Tensor, question: Naming, name: str, templates: Sequence[str]) -> bool:
    """Whether `name` is the nearest to a feature (D,) of all names in the question; ties are broken at random."""
    scores = subject.names(question.names, templates).cpu() @ feature
    return question.names[ranking(scores, seed=f"{name} {question.region}")[0]] == name


def share(hits: Sequence[tuple[int, bool]]) -> Estimate | None:
    """The share of right answers in pairs (number of the picture, is right); None if there are none."""
    return metrics.estimate(as_hits(hits))


def as_hits(hits: Sequence[tuple[int, bool]]) -> Hits:
    pictures, right = zip(*hits, strict=True) if hits else ((), ())
    return Hits(np.array(pictures, np.int64), np.zeros(len(right), np.int64), np.array(right, bool))


def apart(features: Tensor) -> float:
    """The mean cosine between different rows of (P, D), of unit length; NaN if there is one row."""
    cosines = features @ features.T
    return float(cosines[~torch.eye(len(cosines), dtype=torch.bool)].mean())


def in_words(found: Estimate | None) -> str | None:
    """An estimate as a text, so that a table does not print the best of its column in bold."""
    return None if found is None else str(found)


def percent(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.value:.1%}"


def does_not_apply(name: str, title: str, why: str) -> Finding:
    """The finding of a probe that does not apply to a subject."""
    return Finding(name, title, f"Does not apply: {why}")


def obstacle(subject: Subject) -> str | None:
    """Why a probe of masks and layers does not apply to this subject; None if it does."""
    if not subject.takes_masks:
        return no_masks(subject)
    return None if isinstance(subject.model, CLIP) else not_ours(subject)


def not_ours(subject: Subject) -> str:
    return f"{subject.name} is another library's model; this needs one of alpha_clip.load."


def no_masks(subject: Subject) -> str:
    return f"{subject.name} takes no masks."
