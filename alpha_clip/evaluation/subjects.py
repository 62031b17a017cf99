"""Models to evaluate, ours, open_clip's or transformers', each with its way of encoding texts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..api import load
from ..errors import TunedTower
from ..hashes import fingerprint
from ..integrations import holds_alpha, open_tower
from ..model import CLIP
from ..tokenizer import tokenize_cut
from ..towers import features_of

_TEXTS = 256  # texts that go through a text tower at a time


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to evaluate, and how it encodes texts.

    ``base`` is the plain CLIP to compare an alpha model with, if any.
    """

    name: str
    model: nn.Module
    encode: Callable[[list[str]], Tensor]  # texts to (N, D)
    takes_masks: bool = False
    base: Subject | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    _seen: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features (N, D) of texts, float32 and of unit length; each text is encoded only once."""
        new = list(dict.fromkeys(text for text in texts if text not in self._seen))
        for i in range(0, len(new), _TEXTS):
            part = new[i : i + _TEXTS]
            self._seen.update(zip(part, F.normalize(self.encode(part).float(), dim=-1), strict=True))
        return torch.stack([self._seen[text] for text in texts])

    def names(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Features (N, D) of names, each the mean over the templates, float32 and of unit length."""
        texts = [template.replace("{}", name) for name in names for template in templates]
        return F.normalize(self.texts(texts).unflatten(0, (len(names), len(templates))).mean(1), dim=-1)


def find(
    name: str, device: str | torch.device | None = None, base: str | None = None, *, alone: bool = False
) -> Subject:
    """Load a model by name.

    Args:
        name: a name for `alpha_clip.load`, optionally with a plus and the tag or file of alpha weights,
            ``"ViT-B/16+grit1m"``; ``"open_clip:ViT-B-16"`` or ``"open_clip:ViT-B-16:openai"``; or ``"hf:FOLDER"``, a
            CLIP or SigLIP model of transformers. A model whose files hold alpha weights takes masks.
        base: the plain CLIP to compare with; None: the same name without alpha weights, if that is plain CLIP.
        alone: load no base.

    Raises:
        ImportError: the library of the model is not installed.
        OSError: there is no such model, as its library says.
        ValueError: likewise; or `base` was given for a model of another library.
    """
    kind, _, rest = name.partition(":")
    if base and kind in ("hf", "open_clip"):
        raise ValueError(f"{name} is another library's model, which is compared with no plain CLIP: leave --base out")
    if holds_alpha(name):
        return _with_alpha(name, device)
    if kind == "open_clip":
        return _of_open_clip(name, rest, device)
    if kind == "hf":
        return _of_transformers(name, rest, device)
    model = _ours(name, device)
    if alone:
        return of(name, model)
    plain = _ours(base, device) if base else _plain(name, device)
    base_name = base if base and base != name else f"plain {name}"
    return of(name, model, None if plain is None else of(base_name, plain, takes_masks=False))


def of(name: str, model: CLIP, base: Subject | None = None, takes_masks: bool = True) -> Subject:
    """Make a subject of a model from `load`."""

    def encode(texts: list[str]) -> Tensor:
        return model.encode_text(tokenize_cut(texts, model.context_length))

    return Subject(name, model, encode, takes_masks, base, {"name": name, "weights": fingerprint(model)})


def _ours(name: str, device: str | torch.device | None) -> CLIP:
    base, tag = _split(name)
    return load(base, device, alpha_vision_ckpt_pth=tag or "auto")[0]


def _plain(name: str, device: str | torch.device | None) -> CLIP | None:
    """The same model without alpha weights; None if the rest of its tower was tuned with them, so is not plain CLIP."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model, _ = load(_split(name)[0], device, alpha_vision_ckpt_pth=None)
    return None if any(issubclass(warning.category, TunedTower) for warning in told) else model


def _split(name: str) -> tuple[str, str]:
    """Split ``NAME+TAG`` into the name and the tag or file of alpha weights, which may be empty."""
    before, plus, tag = name.partition("+")  # a tag may hold another plus, such as grit1m+mim
    return (before, tag) if plus and not Path(name).exists() else (name, "")


def _with_alpha(name: str, device: str | torch.device | None) -> Subject:
    """Load a model of another library that was trained with an alpha channel."""
    model: Any
    model, words = open_tower(name, device)
    where, is_transformers = next(model.parameters()).device, name.startswith("hf:")

    def encode(texts: list[str]) -> Tensor:
        ids = words(texts).to(where)
        return features_of(model.get_text_features(input_ids=ids)) if is_transformers else model.encode_text(ids)

    return Subject(name, model, encode, takes_masks=True, identity={"name": name, "weights": fingerprint(model)})


def _of_open_clip(name: str, rest: str, device: str | torch.device | None) -> Subject:
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(f"{name!r} is a model of open_clip: pip install open_clip_torch") from error
    architecture, _, pretrained = rest.partition(":")
    model = open_clip.create_model(architecture, pretrained or None, device=device or "cpu").eval()
    words = open_clip.get_tokenizer(architecture)
    where = next(model.parameters()).device
    identity = {"name": name, "weights": fingerprint(model)}
    return Subject(name, model, lambda texts: model.encode_text(words(texts).to(where)), identity=identity)


def _of_transformers(name: str, folder: str, device: str | torch.device | None) -> Subject:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ImportError(f"{name!r} is a model of transformers: pip install transformers") from error
    model: Any = AutoModel.from_pretrained(folder).to(device or "cpu").eval()
    words = AutoTokenizer.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings

    def encode(texts: list[str]) -> Tensor:
        # SigLIP was trained on texts padded to the full length; CLIP gives the same features either way.
        ids = words(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        known = {key: ids[key].to(model.device) for key in ("input_ids", "attention_mask") if key in ids}
        if model.config.model_type == "siglip":
            known.pop("attention_mask", None)
        return features_of(model.get_text_features(**known))

    return Subject(name, model, encode, identity={"name": name, "weights": fingerprint(model)})
