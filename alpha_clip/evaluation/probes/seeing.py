"""What the probes have in common: a subject in front of pictures, and shares of right answers."""

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
TEMPLATES = ("a photo of a {}.",)  # where nobody says otherwise, as in `Task`
WAYS = ("alpha", "crop", "masked_crop")  # where nobody says which to compare


def clip_of(subject: Subject) -> CLIP:
    """The model, of a subject that is one of ours.

    Raises:
        ValueError: it is another library's.
    """
    if not isinstance(subject.model, CLIP):
        raise ValueError(not_ours(subject))
    return subject.model


def pixels(subject: Subject, samples: Sequence[Sample]) -> Tensor:
    """(P, 3, n, n): whole pictures, padded to squares."""
    prepare = tower_of(subject.model).preprocess
    return torch.stack([prepare(sample.image, geometry="pad") for sample in samples])


def encode(subject: Subject, rgb: Tensor) -> Tensor:
    """(P, D) on the CPU, of unit length: whole pictures, as `pixels` gives them."""
    tower = tower_of(subject.model)
    return torch.cat([tower.encode(part) for part in rgb.split(CHUNK)]).cpu()


def see(subject: Subject, image: Image.Image, masks: Iterable[NDArray[np.float32]]) -> Tensor:
    """(K, D) on the CPU, of unit length: a picture under K masks."""
    return embed_regions(subject.model, image, np.stack(list(masks)), "alpha", chunk=CHUNK).float().cpu()


def namings(sample: Sample) -> dict[int, Naming]:
    """The first question for the name of each region that has one, by the region's number."""
    found: dict[int, Naming] = {}
    for question in sample.questions:
        if isinstance(question, Naming):
            found.setdefault(question.region, question)
    return found


def own_name(question: Naming) -> str:
    return question.names[question.answer]


def fitting(subject: Subject, ways: Sequence[Way] | None) -> list[Way]:
    """Those of the ways, None: of `WAYS`, that the subject can look in."""
    return [way for way in ways or [parse(way) for way in WAYS] if way.fits(subject)]


def is_named(subject: Subject, feature: Tensor, question: Naming, name: str, templates: Sequence[str]) -> bool:
    """Is `name`, of all that the question offers, nearest to a feature (D,)? Among equals by lot."""
    scores = subject.names(question.names, templates).cpu() @ feature
    return question.names[ranking(scores, seed=f"{name} {question.region}")[0]] == name


def share(hits: Sequence[tuple[int, bool]]) -> Estimate | None:
    """Of right answers, each with the number of its picture; None where nothing was asked."""
    return metrics.estimate(as_hits(hits))


def as_hits(hits: Sequence[tuple[int, bool]]) -> Hits:
    pictures, right = zip(*hits, strict=True) if hits else ((), ())
    return Hits(np.array(pictures, np.int64), np.zeros(len(right), np.int64), np.array(right, bool))


def apart(features: Tensor) -> float:
    """The mean cosine of different members of (P, D), of unit length; NaN of one alone."""
    cosines = features @ features.T
    return float(cosines[~torch.eye(len(cosines), dtype=torch.bool)].mean())


def in_words(found: Estimate | None) -> str | None:
    """A cell of a table whose columns have no best one, which would stand in bold."""
    return None if found is None else str(found)


def percent(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.value:.1%}"


def does_not_apply(name: str, title: str, why: str) -> Finding:
    """What a probe says that a subject is not for."""
    return Finding(name, title, f"Does not apply: {why}")


def obstacle(subject: Subject) -> str | None:
    """Why what is asked of the masks and the layers of our models cannot be asked of this one; None if it can."""
    if not subject.takes_masks:
        return no_masks(subject)
    return None if isinstance(subject.model, CLIP) else not_ours(subject)


def not_ours(subject: Subject) -> str:
    return f"{subject.name} is another library's model; this needs one of alpha_clip.load."


def no_masks(subject: Subject) -> str:
    return f"{subject.name} takes no masks."
