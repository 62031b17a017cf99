"""Find what is wrong with a model with an alpha channel: python -m alpha_clip.evaluation doctor MODEL

The doctor shows the model drawn scenes and, where possible, compares features with features, because a sound model may
never have learned to name drawings. It says so when the scenes are beyond the model.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import MasksIgnored
from ..regions import embed_regions
from . import builtin
from .probes import attention, identity, sensitivity
from .probes.seeing import CHUNK, clip_of, own_name
from .probes.seeing import namings as questions_of
from .samples import Naming, Sample
from .subjects import Subject, find

SCENES = 48
FEWEST = 8

_BY_PICTURE, _BY_MASK, _BY_BOTH = "features differ by the picture", "... by the mask", "... by what is under the mask"
_KEPT = "kept of plain CLIP's features"


@dataclass(frozen=True)
class Thresholds:
    """Limits between `tiny` and versions of it broken on purpose (docs/probes.md); no other model was tried."""

    # Silhouette reader: the mask alone explains more than this share of the variance of the features. `tiny` has 0.1,
    # and 0.7 with colours turned down to a tenth.
    silhouette: float = 0.5
    # Incompatible: `Identity.related` is below this, so at alpha = 1 a picture is hardly nearer to itself in plain CLIP
    # than to another. Noise as strong as the weights leaves 0.1, foreign weights 0.0.
    related: float = 0.15
    # Drifted: `Identity.kept` is below this. `tiny` has 0.95; noise that halves what it names leaves 0.65.
    kept: float = 0.7
    # Mask-blind: the mask and what lies under it explain less than this share of the variance. Two masks of one picture
    # then have a cosine of 0.99 where two pictures have 0.5. `tiny` has 0.7, and 0.01 with alpha weights of a tenth.
    blind: float = 0.02
    # The least correlation of attention with the mask, changed or not, at which misalignment is judged. `tiny` has 0.8.
    follows: float = 0.3
    # Misaligned: attention follows a changed mask better than the mask itself, significantly and by this factor. For
    # `tiny` no change reaches more than 0.8 of the mask itself; a mask moved by an eighth of the side gives 1.9.
    misaligned: float = 1.15
    # The text tower fits if texts name this many times what chance would. `tiny` has 45; a foreign text tower has 1.
    named: float = 3.0
    # If they do not, the text tower is foreign if image features of one noun are nearest to each other this much more
    # often than by chance; else the scenes are beyond the image tower. `tiny` has 0.55; random towers have 0.1, from
    # colours and places.
    knows: float = 0.2


@dataclass(frozen=True)
class Failure:
    """One thing that is wrong with a model, the evidence for it, and what to do."""

    name: str
    because: str
    remedy: str


@dataclass
class Diagnosis:
    """The failures, the one that explains most first; what could not be decided; and all figures."""

    failures: list[Failure] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        if self.failures:
            return self.failures[0].name
        return "healthy, as far as can be told" if self.unclear else "healthy"

    def text(self) -> str:
        width = max(map(len, self.figures), default=0)
        lines = [f"{name:{width}}  {value:6.3f}" for name, value in self.figures.items()]
        for failure in self.failures:
            lines += ["", f"{failure.name}: {failure.because}", f"What to do: {failure.remedy}"]
        lines += [f"\ncannot tell: {what}" for what in self.unclear]
        return "\n".join([*lines, "", f"-> {self.name}"])


REMEDIES: Mapping[str, str] = {
    "silhouette reader": "train with boxes, jittered masks and other objects' outlines in place of exact masks, and "
    "check that the picture reaches the tower (its normalisation, conv1's weights).",
    "incompatible tower": "load the alpha weights over the base that they were tuned from, with its text tower, heads "
    "and activation: `python -m alpha_clip.weights verify FILE` says what a file is.",
    "global drift": "train with more whole pictures (`whole`, 0.1 in the paper), hold features to the base "
    "(`distill`), or lower the learning rate of the tower; or this is not the base: name it, --base.",
    "mask-blind": "load alpha weights (alpha_vision_ckpt_pth=, or MODEL+TAG), or train them; alpha must be "
    "(mask - 0.5) / 0.26, as `preprocess` gives it.",
    "misaligned mask": "move picture and mask by one geometry, `preprocess(image, mask)`, in training and in use; look "
    "for a flip, a crop or a resize that only one of the two went through.",
}


@torch.no_grad()
def examine(
    subject: Subject, samples: Sequence[Sample] | None = None, thresholds: Thresholds | None = None
) -> Diagnosis:
    """Look for what is wrong with `subject`.

    Args:
        samples: pictures with named regions; None: `SCENES` built-in ones.
        thresholds: None: the defaults.

    Raises:
        ValueError: the subject takes no masks or is another library's model, or there are fewer than `FEWEST` samples
            with named regions.
    """
    if not subject.takes_masks:
        raise ValueError(f"{subject.name} takes no masks: the doctor looks at models of alpha_clip.load")
    model = clip_of(subject)
    scenes = [builtin.sample("plain", i) for i in range(SCENES)] if samples is None else samples
    scenes = [sample for sample in scenes if questions_of(sample)]
    if len(scenes) < FEWEST:
        raise ValueError(f"there are {len(scenes)} samples with named regions, expected {FEWEST} or more")
    limits, diagnosis = thresholds or Thresholds(), Diagnosis()
    if not model.confirmed:
        diagnosis.unclear.append(
            "whether heads and activation are right: no file says so (`python -m alpha_clip.weights verify FILE`)."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MasksIgnored)  # the diagnosis says so
        if _is_dead(subject, scenes, diagnosis) or _reads_silhouettes(limits, diagnosis):
            return diagnosis  # its features do not depend on the picture, so the other checks mean nothing
        if _is_incompatible(subject, scenes, limits, diagnosis):
            return diagnosis  # the other checks would measure the mismatch
        _has_drifted(subject, limits, diagnosis)
        if not _is_blind(limits, diagnosis):
            _is_misaligned(subject, scenes, limits, diagnosis)
    return diagnosis


def _fail(diagnosis: Diagnosis, name: str, because: str) -> bool:
    diagnosis.failures.append(Failure(name, because, REMEDIES[name]))
    return True


def _is_dead(subject: Subject, scenes: Sequence[Sample], diagnosis: Diagnosis) -> bool:
    why = sensitivity.measure_causes(subject, scenes)
    if math.isnan(why.mask):
        return _fail(
            diagnosis, "incompatible tower", "features are not finite, or the same for all pictures and masks."
        )
    diagnosis.figures |= {_BY_PICTURE: why.picture, _BY_MASK: why.mask, _BY_BOTH: why.both}
    return False


def _reads_silhouettes(limits: Thresholds, diagnosis: Diagnosis) -> bool:
    mask, both = diagnosis.figures[_BY_MASK], diagnosis.figures[_BY_BOTH]
    if mask <= limits.silhouette:
        return False
    return _fail(
        diagnosis,
        "silhouette reader",
        f"{mask:.0%} of what features differ by is the mask, whatever picture it lies on; what lies under it makes "
        f"{both:.0%}.",
    )


def _is_incompatible(subject: Subject, scenes: Sequence[Sample], limits: Thresholds, diagnosis: Diagnosis) -> bool:
    base = subject.base
    if base is None:
        diagnosis.unclear.append("whether the tower drifted: there is no plain CLIP to compare it with (--base).")
    elif other := identity.unlike(subject, base):
        return _fail(diagnosis, "incompatible tower", f"the image tower has {other}.")
    else:
        same = identity.measure(subject, base, scenes)
        diagnosis.figures |= {
            "cosine of alpha = 1 to plain CLIP": same.cosine,
            "... 5th percentile": same.low,
            "cosine of different pictures": same.between,
            _KEPT: same.kept,
            "related to plain CLIP's features": same.related,
            "cosine of patches, last block but one": same.patches,
        }
        if same.related < limits.related:
            return _fail(
                diagnosis,
                "incompatible tower",
                f"at alpha = 1 a picture has cosine {same.cosine:.2f} to itself in plain CLIP, and {same.crossed:.2f} "
                "to any other: the image tower is not of this base, or its weights are in disorder.",
            )
    return _has_foreign_texts(subject, scenes, limits, diagnosis)


def _has_foreign_texts(subject: Subject, scenes: Sequence[Sample], limits: Thresholds, diagnosis: Diagnosis) -> bool:
    """Whether image features tell the nouns apart but texts do not find them."""
    cut_outs, questions = _cut_outs(subject, scenes)
    own = np.array([own_name(question) for question in questions])
    others = (own[:, None] == own).sum(axis=1) - 1
    nearest = cut_outs @ cut_outs.T
    nearest.fill_diagonal_(-2)
    alike = (own[nearest.argmax(dim=1).numpy()] == own)[others > 0]
    chance = (others / (len(own) - 1))[others > 0]
    names = questions[0].names
    texts = subject.names(names, builtin.TEMPLATES).cpu()
    named = np.array(names)[(cut_outs @ texts.T).argmax(dim=1).numpy()] == own
    diagnosis.figures |= {
        "cut-outs whose nearest has the same name": float(alike.mean()),
        "... by chance": float(chance.mean()),
        "cut-outs named by texts": float(named.mean()),
    }
    if named.mean() > limits.named / len(names):
        return False
    if alike.mean() < limits.knows + chance.mean():
        diagnosis.unclear.append(
            "whether the text tower fits: its image features do not know these drawings apart, so no text could name "
            "them. Try pictures of the kind it was trained on, with a protocol."
        )
        return False
    return _fail(
        diagnosis,
        "incompatible tower",
        f"image features know the drawings apart (the nearest has the same name in {alike.mean():.0%}), and texts name "
        f"{named.mean():.0%} of them: the text tower is not of this image tower.",
    )


def _cut_outs(subject: Subject, scenes: Sequence[Sample]) -> tuple[torch.Tensor, list[Naming]]:
    """Features (R, D) at alpha = 1 of the cut-outs of all regions whose question offers the same names as the first."""
    names = next(iter(questions_of(scenes[0]).values())).names
    features: list[torch.Tensor] = []
    asked: list[Naming] = []
    for sample in scenes:
        questions = {k: q for k, q in questions_of(sample).items() if q.names == names}
        if not questions:
            continue
        cut = embed_regions(subject.model, sample.image, sample.masks[list(questions)], "cut_out", chunk=CHUNK)
        features.append(cut.float().cpu())
        asked += questions.values()
    return torch.cat(features), asked


def _has_drifted(subject: Subject, limits: Thresholds, diagnosis: Diagnosis) -> bool:
    kept = diagnosis.figures.get(_KEPT)
    if kept is None or kept >= limits.kept:
        return False
    return _fail(
        diagnosis,
        "global drift",
        f"at alpha = 1 features keep {kept:.0%} of the way from another picture's to plain CLIP's: whatever reads "
        "CLIP's features will misread them.",
    )


def _is_blind(limits: Thresholds, diagnosis: Diagnosis) -> bool:
    by_mask = diagnosis.figures[_BY_MASK] + diagnosis.figures[_BY_BOTH]
    if by_mask >= limits.blind:
        return False
    return _fail(diagnosis, "mask-blind", f"masks make {by_mask:.1%} of what features differ by.")


def _is_misaligned(subject: Subject, scenes: Sequence[Sample], limits: Thresholds, diagnosis: Diagnosis) -> bool:
    seen = attention.measure(subject, scenes)
    means = {change: float(values.mean()) for change, values in seen.follows.items()}
    best = max(means, key=lambda change: means[change])
    own = means["as it is"]
    inside = seen.mask[-1].mean(dim=1) / seen.area  # (K,)
    diagnosis.figures |= {
        "attention inside the mask, as a multiple of its area": float(inside.mean()),
        "attention follows the mask": own,
        f"... {best}": means[best],
    }
    if means[best] < limits.follows:
        diagnosis.unclear.append(
            "whether masks lie where they should: the class token's attention follows them nowhere "
            f"(correlation {means[best]:.2f} at best)."
        )
        return False
    gain = seen.follows[best] - seen.follows["as it is"]
    sure = float(gain.mean()) > 2 * float(gain.std()) / len(gain) ** 0.5  # about 95%
    if not (sure and means[best] > limits.misaligned * own):
        return False
    return _fail(
        diagnosis,
        "misaligned mask",
        f"attention follows the mask {best} (correlation {means[best]:.2f}) better than as it is ({own:.2f}).",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name for alpha_clip.load, or NAME+TAG")
    parser.add_argument(
        "--base", help="plain CLIP that it was tuned from; default: the same name without alpha weights"
    )
    parser.add_argument("--device", help="default: CUDA if there is one, else MPS, else the CPU")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")


def main(args: argparse.Namespace) -> int:
    """Print the diagnosis; return 1 if there is a failure, else 0."""
    diagnosis = examine(find(args.model, args.device, args.base))
    print(diagnosis.text())  # noqa: T201
    return 1 if diagnosis.failures else 0
