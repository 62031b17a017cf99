"""Is a model with alpha = 1 everywhere still the CLIP it was tuned from?

Alpha-CLIP is trained to keep CLIP's features at alpha = 1 (arXiv 2312.03818, section 3.2), and whatever reads CLIP's
features, such as a captioner or a search index, relies on that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model import CLIP
from ...zero_shot import TEMPLATES
from .. import metrics
from ..metrics import Hits
from ..samples import Sample
from ..subjects import Subject
from ..tables import Finding, Table
from ..ways import Way
from .seeing import (
    CHUNK,
    apart,
    as_hits,
    clip_of,
    does_not_apply,
    encode,
    namings,
    no_masks,
    not_ours,
    percent,
    pixels,
)

NAME, TITLE = "identity", "Looking everywhere, is it still plain CLIP?"


@dataclass(frozen=True)
class Identity:
    """Mean cosines between features of whole pictures, by the model at alpha = 1 and by the plain CLIP."""

    cosine: float  # of a picture by the model to itself by the plain CLIP
    low: float  # the 5th percentile of these
    between: float  # of different pictures, both by the plain CLIP
    crossed: float  # of different pictures, one by the model, the other by the plain CLIP
    class_token: float  # like `cosine`, for the class token after the last block but one
    patches: float  # like `cosine`, for its patches
    patches_between: float  # like `between`, for its patches

    @property
    def kept(self) -> float:
        """1 if the features are plain CLIP's; 0 if they are as far from them as another picture's."""
        return (self.cosine - self.between) / (1 - self.between)

    @property
    def related(self) -> float:
        """1 if the features are plain CLIP's; 0 if they are no nearer to them than to those of any other picture."""
        return (self.cosine - self.crossed) / (1 - self.between)


def obstacle(subject: Subject) -> str | None:
    """Why the subject cannot be compared with its base; None if it can."""
    if not subject.takes_masks:
        return f"{no_masks(subject)} It is plain CLIP as it is."
    if not isinstance(subject.model, CLIP):
        return not_ours(subject)
    if subject.base is None:
        return f"there is no plain CLIP to compare {subject.name} with: name one, --base NAME."
    if other := unlike(subject, subject.base):
        return f"{subject.name} has {other}: it was not tuned from that model."
    return None


def unlike(subject: Subject, base: Subject) -> str | None:
    """Describe the first size in which the image towers of two models of ours differ; None if they agree."""
    sizes = [
        {
            "blocks": len(visual.transformer.blocks),
            "heads": visual.transformer.blocks[0].attn.num_heads,
            "numbers in a token": visual.transformer.width,
            "numbers in a feature": visual.output_dim,
            "pixels of a side": visual.input_resolution,
        }
        for visual in (clip_of(subject).visual, clip_of(base).visual)
    ]
    found = (f"{n} {what}, {base.name} {sizes[1][what]}" for what, n in sizes[0].items() if n != sizes[1][what])
    return next(found, None)


@torch.no_grad()
def measure(subject: Subject, base: Subject, samples: Sequence[Sample]) -> Identity:
    """Compare `subject` with `base` on two samples or more; `obstacle` must have found nothing."""
    rgb = pixels(subject, samples)
    now, then = encode(subject, rgb), encode(base, rgb)
    cosines = (now * then).sum(dim=1)
    crossed = now @ then.T
    tokens_now, tokens_then = _penultimate(subject, rgb), _penultimate(base, rgb)
    token_cosines = (tokens_now * tokens_then).sum(dim=2)  # (P, 1 + N)
    return Identity(
        cosine=float(cosines.mean()),
        low=float(cosines.quantile(0.05)),
        between=apart(then),
        crossed=float(crossed[~torch.eye(len(crossed), dtype=torch.bool)].mean()),
        class_token=float(token_cosines[:, 0].mean()),
        patches=float(token_cosines[:, 1:].mean()),
        patches_between=float(torch.tensor([apart(place) for place in tokens_then[:, 1:].unbind(1)]).mean()),
    )


def _penultimate(subject: Subject, rgb: Tensor) -> Tensor:
    """Tokens (P, 1 + N, width) after the last block but one, on the CPU and of unit length.

    Captioners read these; LLaVA takes the patches.
    """
    visual = clip_of(subject).visual
    layer = -min(2, len(visual.transformer.blocks))
    parts = [visual.tokens(part, layer=layer).float().cpu() for part in rgb.split(CHUNK)]
    return F.normalize(torch.cat(parts), dim=-1)


def recall(subject: Subject, samples: Sequence[Sample], templates: Sequence[str]) -> Hits:
    """Which of a picture's k named regions are among its k best names; for k = 1, zero-shot accuracy."""
    hits = []
    asked = [(number, namings(sample)) for number, sample in enumerate(samples)]
    features = encode(subject, pixels(subject, samples))
    for number, questions in asked:
        by_names: dict[tuple[str, ...], set[int]] = {}
        for question in questions.values():
            by_names.setdefault(question.names, set()).add(question.answer)
        for names, there in by_names.items():
            scores = subject.names(names, templates).cpu() @ features[number]
            best = set(scores.topk(min(len(there), len(names))).indices.tolist())
            hits += [(number, answer in best) for answer in sorted(there)]
    return as_hits(hits)


def probe(
    subject: Subject,
    samples: Sequence[Sample],
    templates: Sequence[str] = TEMPLATES,
    ways: Sequence[Way] | None = None,
) -> Finding:
    """Compare the subject at alpha = 1 with its base."""
    if (why := obstacle(subject)) is not None:
        return does_not_apply(NAME, TITLE, why)
    if len(samples) < 2:
        return does_not_apply(NAME, TITLE, f"it takes 2 pictures or more, and there are {len(samples)}.")
    base = subject.base
    assert base is not None
    found = measure(subject, base, samples)
    hits = [recall(s, samples, templates) for s in (subject, base)]
    now, then = (metrics.estimate(each) for each in hits)
    difference = metrics.difference(hits[0], hits[1])
    verdict = (
        f"A picture's feature at alpha = 1 has cosine {found.cosine:.3f} to plain CLIP's (5th percentile "
        f"{found.low:.3f}); different pictures have {found.between:.3f}. {found.kept:.0%} of the way from another "
        f"picture's is kept. Of what is in the pictures it names {percent(now)}, plain CLIP {percent(then)}."
    )
    cosines = Table(
        "Cosine of alpha = 1 to plain CLIP",
        ["", "same picture", "5th percentile", "different pictures, plain CLIP"],
        [
            ["feature", f"{found.cosine:.3f}", f"{found.low:.3f}", f"{found.between:.3f}"],
            ["class token, last block but one", f"{found.class_token:.3f}", None, None],
            ["patches, last block but one", f"{found.patches:.3f}", None, f"{found.patches_between:.3f}"],
        ],
        "Patches of different pictures are compared place by place.",
    )
    named = Table(
        "Zero-shot, whole pictures",
        ["", "names found"],
        [["alpha = 1", str(now)], ["plain CLIP", str(then)], ["difference", str(difference)]] if now else [],
        "Of a picture's k named things, the share that is among its k best names.",
    )
    return Finding(NAME, TITLE, verdict, [cosines, named])
