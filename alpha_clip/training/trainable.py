"""The interface that the trainer needs of a model, and this package's own; `foreign` has other libraries'."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoints
from ..model import CLIP, VisionTransformer
from ..tokenizer import tokenize_cut
from ..transforms import Preprocess

Tokenize = Callable[[Sequence[str]], Tensor]  # texts, in lower case, to (U, L) token ids

# Modules and parameters behind the last block of an image tower, as the libraries name them.
_TAIL = {"ln_post", "proj", "post_layernorm", "visual_projection", "norm", "fc_norm", "attn_pool", "head"}


class Trainable(ABC):
    """Adapter of a model for the trainer. It has no weights: all are the model's, under the model's own names."""

    model: Any
    visual: nn.Module  # the image tower; `encode_image` takes copies of it too
    alpha: Tensor  # the weights of the alpha channel
    preprocess: Preprocess  # of the model's size, mean and deviation
    image_names: tuple[str, ...] = ("visual.",)  # prefixes of the names of the image tower's weights
    blocks_at: str | None = "transformer.resblocks"  # in the image tower; None: its blocks are not known
    metadata: Mapping[str, str] | None = None  # for `last.pt`, so that `load` takes that file too

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.logit_scale.device
        return device

    @property
    def is_sigmoid(self) -> bool:
        """Whether it was trained with the sigmoid loss (SigLIP, arXiv 2303.15343), which has a bias."""
        return getattr(self.model, "logit_bias", None) is not None

    def temperature(self) -> tuple[Tensor, ...]:
        """() factor on the cosines, and () bias if the model has one."""
        scale: Tensor = self.model.logit_scale.exp().reshape(())
        return (scale, self.model.logit_bias.reshape(())) if self.is_sigmoid else (scale,)

    @abstractmethod
    def encode_image(self, visual: Any, image: Tensor, alpha: Tensor | None) -> Tensor:
        """Features (B, D) of pixels (B, 3, n, n) and alpha (B, 1, n, n), or None for whole images."""

    @abstractmethod
    def encode_image_with_tokens(self, visual: Any, image: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor]:
        """The features, and the output of the penultimate block for the patches, (B, N, width)."""

    @abstractmethod
    def encode_text(self, ids: Tensor) -> Tensor:
        """Features (U, D) of (U, L) token ids."""

    @abstractmethod
    def token_ids(self, tokenize: Tokenize, texts: Sequence[str]) -> Tensor:
        """Token ids (U, L) of U texts; U may be 0."""

    @abstractmethod
    def tokenizer(self) -> Tokenize:
        """The tokenizer that comes with the model.

        Raises:
            ValueError: no tokenizer comes with it.
        """

    @abstractmethod
    def checkpoint_blocks(self, on: bool) -> None:
        """Switch activation checkpointing of the blocks on or off."""

    @abstractmethod
    def save(self, path: Path, with_text: bool, about: Mapping[str, str], tokenize: Tokenize) -> None:
        """Save what was trained to `path`, or to the folder `path` without its suffix, with `about` as metadata."""

    def blocks(self, visual: nn.Module, option: str) -> list[nn.Module]:
        """The blocks of the image tower or of a copy, first to last.

        Raises:
            ValueError: its blocks are not known; `option` is the setting that needs them.
        """
        if self.blocks_at is None:
            remedy = "set it to 0 (--distill-tokens 0)" if option == "distill_tokens" else "leave it out"
            raise ValueError(
                f"TrainConfig.{option} needs an image tower of transformer blocks, which {type(visual).__name__} is "
                f"not known to be: {remedy}"
            )
        return list(visual.get_submodule(self.blocks_at).children())

    def tail(self) -> list[nn.Parameter]:
        """The parameters of the image tower that follow its blocks."""
        parameters = []
        for name, parameter in self.visual.named_parameters():
            if name.removeprefix("trunk.").removeprefix("vision_model.").partition(".")[0] in _TAIL:
                parameters.append(parameter)
        return parameters

    def trained(self, with_text: bool) -> dict[str, Tensor]:
        """The weights of the image tower, or `with_text` of the whole model, in the model's own names."""
        state: dict[str, Tensor] = self.model.state_dict()
        return {k: v for k, v in state.items() if with_text or k.startswith(self.image_names)}


class OwnModel(Trainable):
    """This package's CLIP."""

    model: CLIP

    def __init__(self, model: CLIP) -> None:
        self.model = model
        self.visual: VisionTransformer = model.visual
        self.alpha = model.visual.conv1_alpha.weight
        self.preprocess = Preprocess(model.visual.input_resolution)
        self.metadata = checkpoints.METADATA if model.confirmed else None

    def encode_image(self, visual: VisionTransformer, image: Tensor, alpha: Tensor | None) -> Tensor:
        features: Tensor = visual(image, alpha)
        return features

    def encode_image_with_tokens(
        self, visual: VisionTransformer, image: Tensor, alpha: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        tokens = visual.tokens(image, alpha, layer=-2)  # (B, 1 + N, width)
        last = visual.transformer.run([visual.transformer.blocks[-1].first], tokens.permute(1, 0, 2))[0]
        return visual.project(last), tokens[:, 1:]

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.model.encode_text(ids)

    def token_ids(self, tokenize: Tokenize, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, 1, dtype=torch.int64)
        ids = tokenize(texts)
        return ids[:, : int(ids.argmax(dim=-1).max()) + 1]  # the tower is causal: padding is idle

    def tokenizer(self) -> Tokenize:
        return tokenize_cut

    def checkpoint_blocks(self, on: bool) -> None:
        for tower in (self.visual.transformer, self.model.transformer):
            tower.checkpointing = on

    def save(self, path: Path, with_text: bool, about: Mapping[str, str], tokenize: Tokenize) -> None:
        checkpoints.write(self.trained(with_text), path, confirmed=self.model.confirmed, about=about)
