"""Adapters of open_clip's and transformers' models for the trainer, after `integrations.add_alpha`.

Neither package is imported: a model is recognised by its attributes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoints
from ..integrations import alpha_weight
from ..integrations.opening import OPEN_CLIP
from ..model import CLIP
from ..towers import tower_of
from .trainable import OwnModel, Tokenize, Trainable


def trainable(model: nn.Module | Trainable) -> Trainable:
    """The adapter through which the trainer uses a model.

    Args:
        model: from `alpha_clip.load`; or, with an alpha channel, an open_clip model, or a CLIPModel or SiglipModel of
            transformers.

    Raises:
        TypeError: it is none of these.
        ValueError: it has no alpha channel.
    """
    if isinstance(model, Trainable):
        return model
    if isinstance(model, CLIP):
        return OwnModel(model)
    preprocess = tower_of(model).preprocess
    adapter = OpenClipModel(model) if hasattr(model, "visual") else TransformersModel(model)
    adapter.alpha, adapter.preprocess = alpha_weight(model), preprocess
    return adapter


class _Foreign(Trainable):
    """What both libraries have in common: alpha is the fourth channel of the pixels."""

    prefix = 1  # tokens before the patches
    tokens_first = False  # True: the blocks take (L, B, width), not (B, L, width)

    def encode_image(self, visual: nn.Module, image: Tensor, alpha: Tensor | None) -> Tensor:
        weight = next(visual.parameters())
        pixels = image if alpha is None else torch.cat([image, alpha], dim=1)
        features: Tensor = visual(_one_at_least(pixels).to(weight.device, weight.dtype))
        return features[: len(image)]

    def encode_image_with_tokens(self, visual: nn.Module, image: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []

        def keep(module: nn.Module, given: Any, made: Any) -> None:
            kept.append(made[0] if isinstance(made, tuple) else made)

        handle = self.blocks(visual, "distill_tokens")[-2].register_forward_hook(keep)
        try:
            features = self.encode_image(visual, image, alpha)
        finally:
            handle.remove()
        tokens = kept[0].transpose(0, 1) if self.tokens_first else kept[0]
        return features, tokens[: len(image), self.prefix :]

    def token_ids(self, tokenize: Tokenize, texts: Sequence[str]) -> Tensor:
        return tokenize(texts or [""])[: len(texts)]  # padding matters to some

    def tokenizer(self) -> Tokenize:
        raise ValueError(
            f"{type(self.model).__name__} does not come with its tokenizer: pass tokenize=, such as the second thing "
            "that alpha_clip.integrations.open_tower returns"
        )


class OpenClipModel(_Foreign):
    """A CLIP or SigLIP of open_clip, whose image tower is its own ViT or one of timm's."""

    def __init__(self, model: Any) -> None:
        if getattr(model.visual, "output_tokens", False):
            raise TypeError(f"{type(model).__name__} has a text decoder, expected a CLIP or SigLIP of open_clip")
        self.model, self.visual = model, model.visual
        if hasattr(model.visual, "trunk"):
            self.blocks_at = "trunk.blocks" if hasattr(model.visual.trunk, "blocks") else None
            self.prefix = getattr(model.visual.trunk, "num_prefix_tokens", 0)
        elif not hasattr(getattr(model.visual, "transformer", None), "resblocks"):
            self.blocks_at = None
        else:
            self.tokens_first = not getattr(model.visual.transformer, "batch_first", False)  # older: always

    def encode_text(self, ids: Tensor) -> Tensor:
        features: Tensor = self.model.encode_text(_one_at_least(ids))
        return features[: len(ids)]

    def checkpoint_blocks(self, on: bool) -> None:
        self.model.set_grad_checkpointing(on)

    def save(self, path: Path, with_text: bool, about: Mapping[str, str], tokenize: Tokenize) -> None:
        """Save all weights, so that they load strictly, and the settings that only the pretrained tag implied."""
        made = {
            "force_preprocess_cfg": getattr(self.visual, "preprocess_cfg", {}),
            "force_quick_gelu": any(type(module).__name__ == "QuickGELU" for module in self.visual.modules()),
        }
        about = {**about, OPEN_CLIP: json.dumps(made)}
        checkpoints.write(self.trained(with_text=True), path, confirmed=False, about=about)


class TransformersModel(_Foreign):
    """A CLIPModel or SiglipModel of transformers."""

    image_names = ("vision_model.", "visual_projection.")
    blocks_at = "vision_model.encoder.layers"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.visual = _ImageFeatures(model)
        self.prefix = 1 if model.config.model_type == "clip" else 0

    def encode_text(self, ids: Tensor) -> Tensor:
        output = self.model.get_text_features(input_ids=_one_at_least(ids))
        features: Tensor = getattr(output, "pooler_output", output)  # the former since transformers 5
        return features[: len(ids)]

    def checkpoint_blocks(self, on: bool) -> None:
        kind = "activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient"  # before 5.24
        if on:
            enable = getattr(self.model, f"{kind}_checkpointing_enable")
            enable(**{f"{kind}_checkpointing_kwargs": {"use_reentrant": False}})
        else:
            getattr(self.model, f"{kind}_checkpointing_disable")()

    def save(self, path: Path, with_text: bool, about: Mapping[str, str], tokenize: Tokenize) -> None:
        """Save as `save_pretrained` does, and the tokenizer if it can be saved; files are renamed when whole."""
        folder = path.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{folder.name}.") as part:
            self.model.save_pretrained(part)
            if hasattr(tokenize, "save_pretrained"):
                tokenize.save_pretrained(part)
            for file in sorted(Path(part).iterdir()):
                os.replace(file, folder / file.name)


def _one_at_least(batch: Tensor) -> Tensor:
    """The batch, or one row of zeros if it is empty, since not every tower takes an empty batch."""
    return batch if len(batch) else batch.new_zeros(1, *batch.shape[1:])


class _ImageFeatures(nn.Module):
    """The image tower and projection of a model, whose modules they stay."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = getattr(model, "visual_projection", nn.Identity())

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)
        return features
