"""Make classifier weights of names: the mean text feature over sentences (arXiv 2103.00020, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import CLIP
from .tokenizer import VOCAB_SIZE, tokenize
from .wrappers import patch_weight, unwrapped

TEMPLATES = ("a photo of a {}.",)

_TEXTS = 1600  # the most that go through the text tower at a time, unless one name has more


class TextTower(Protocol):
    """The part of a model that encodes texts."""

    context_length: int

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode (N, L) token ids to features (N, D)."""
        ...


@torch.no_grad()
def zero_shot_classifier(
    model: TextTower | nn.Module,
    names: Sequence[str],
    templates: Sequence[str] | Literal["openai80"] = TEMPLATES,
    *,
    negatives: Sequence[str] = (),
    truncate: bool = False,
) -> Tensor:
    """Return weights (N + M, D) of unit norm, in the model's dtype, so that ``features @ weights.T`` are N + M scores.

    The dtype is that of the features of `embed_regions`, under autocast too.

    Args:
        model: from `load` or `onnx.load`; an open_clip model with CLIP's vocabulary; or one of these as
            ``torch.compile``, ``DataParallel`` or peft wraps it.
        names: N things, such as ``["cat", "traffic light"]``.
        templates: sentences with one ``{}`` each, where the name goes; or ``"openai80"``, the 80 that OpenAI's CLIP
            used for ImageNet, which open_clip provides.
        negatives: M things that a region may be besides, such as ``["background", "object"]``. Their rows come last,
            so that after a softmax over all N + M a region can be none of the names.
        truncate: cut a sentence that is too long for the model, which is else an error.

    Raises:
        TypeError: the model is none of these; `names`, `templates` or `negatives` is not a sequence of strings.
        ValueError: `names` or `templates` is empty; a template has not exactly one ``{}``; a negative is a name too.
        ImportError: ``"openai80"`` without open_clip.
        RuntimeError: a sentence is too long for the model, without `truncate`.

    >>> import alpha_clip
    >>> model, _ = alpha_clip.load("tiny", device="cpu")
    >>> zero_shot_classifier(model, ["cat", "car"], ["a photo of a {}.", "a drawing of a {}."]).shape
    torch.Size([2, 128])

    Is it a cat, a car, or neither? Here, of a feature that is the text's own of a tree:

    >>> weights = zero_shot_classifier(model, ["cat", "car"], negatives=["tree", "balloon"])
    >>> features = zero_shot_classifier(model, ["tree"])
    >>> probs = (model.logit_scale.exp() * features @ weights.T).softmax(dim=-1)  # (1, 4)
    >>> bool(probs[0, 2:].sum() > 0.9)
    True
    """
    model = _with_our_tokens(model)
    if templates == "openai80":
        templates = _openai80()
    _check("names", names)
    _check("templates", templates)
    for template in templates:
        if (places := template.count("{}")) != 1:
            raise ValueError(f"template {template!r} has {places} places {{}}, expected 1, where the name goes")
    if negatives != ():  # what nobody gave
        _check("negatives", negatives, least=0)
    if both := sorted({*names} & {*negatives}):
        raise ValueError(
            f"negatives repeats {', '.join(map(repr, both))} of names, expected other things: leave it out"
        )
    rows = [*names, *negatives]
    step = max(1, _TEXTS // len(templates))
    return torch.cat([_weights(model, rows[i : i + step], templates, truncate) for i in range(0, len(rows), step)])


def joined(names: Sequence[str]) -> str:
    """Join several names into one.

    >>> joined(["a cat", "a dog", "a car"])
    'a cat, a dog and a car'
    """
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


def _with_our_tokens(model: Any) -> Any:
    """Return the model `unwrapped`, or raise TypeError if it does not read the ids that `tokenize` gives."""
    model = unwrapped(model)
    if not isinstance(model, CLIP):
        size = getattr(model, "vocab_size", None)
        if not (hasattr(model, "encode_text") and hasattr(model, "context_length") and size == VOCAB_SIZE):
            other = f" with a vocabulary of {size}" if isinstance(size, int) else ""
            raise TypeError(
                f"the model is {type(model).__name__}{other}, expected one from alpha_clip.load or onnx.load, or one "
                f"of open_clip with CLIP's vocabulary of {VOCAB_SIZE}: with another, encode what its own tokenizer "
                "gives, as open_clip.build_zero_shot_classifier does"
            )
    return model


def _weights(model: Any, names: Sequence[str], templates: Sequence[str], truncate: bool) -> Tensor:
    texts = [template.replace("{}", name) for name in names for template in templates]
    tokens, dtype = tokenize(texts, model.context_length, truncate), torch.float32
    if isinstance(model, nn.Module):  # ONNX has no parameters
        dtype = patch_weight(model).dtype
        if not isinstance(model, CLIP):  # which moves them itself
            tokens = tokens.to(next(model.parameters()).device)
    features = model.encode_text(tokens)
    features = features.to(torch.promote_types(features.dtype, torch.float32))  # half precision is too coarse to sum
    features = F.normalize(features, dim=-1).unflatten(0, (len(names), len(templates)))
    return F.normalize(features.mean(1), dim=-1).to(dtype)


def _check(what: str, texts: Sequence[str], least: int = 1) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"{what} is {texts!r}, expected a list of strings: put a single one in brackets")
    if len(texts) < least:
        raise ValueError(f"{what} is empty, expected one string or more")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{what}[{i}] is {type(text).__name__}, expected a string: convert it with str()")


def _openai80() -> list[str]:
    try:
        from open_clip import OPENAI_IMAGENET_TEMPLATES
    except ImportError as error:
        raise ImportError('templates="openai80" takes them from open_clip: pip install open_clip_torch') from error
    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
