"""One small interface to the image towers of this package, open_clip and transformers.

Neither library is imported: a model is recognised by its attributes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import CLIP
from .transforms import IMAGE_MEAN, IMAGE_STD, Preprocess
from .wrappers import patch_weight, unwrapped

# Of transformers' models, which do not hold their own unless `open_tower` found it; SigLIP's scale to [-1, 1].
_NORMALISATION = {
    "clip": (IMAGE_MEAN, IMAGE_STD),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class Tower:
    """An image tower: how to make its pixels, and how to get features from them."""

    model: nn.Module
    preprocess: Preprocess  # of the model's own size, mean and deviation
    features: Callable[..., Tensor]  # of (B, 3, n, n) pixels, and alpha where `takes_alpha`: (B, D)
    takes_alpha: bool = False
    last_block: nn.Module | None = None  # of a ViT whose class token makes the features
    tokens_first: bool = False  # the blocks take (L, B, width), not (B, L, width)
    grid: int = 0  # patches in a row and in a column, of such a ViT

    @torch.no_grad()
    def encode(self, rgb: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Encode pixels (B, 3, n, n), and alpha (K, 1, n, n) as `Preprocess` gives it, to (B or K, D), of unit length.

        Features are float32 at least, whatever the model computes in.
        """
        weight = patch_weight(self.model)
        rgb = rgb.to(weight.device, weight.dtype)
        features = self.features(rgb) if alpha is None else self.features(rgb, alpha)
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)

    @contextmanager
    def last_block_sees(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Send the last block's input, (B, 1 + N, width), through `change` while this lasts, in this thread.

        `change` may return another batch of other lengths; the first token of each is its class token.

        Raises:
            TypeError: the features of this model do not come from a class token.
        """
        if self.last_block is None:
            raise TypeError(
                f"{type(self.model).__name__} has no class token that reads the patches in its last block, as "
                "CLIP's ViTs have: use a method that changes the picture, such as 'crop'"
            )

        caller = threading.get_ident()

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if threading.get_ident() != caller:  # others use the same model meanwhile
                return args, kwargs
            tokens = args[0] if args else kwargs["hidden_states"]
            turned = (lambda x: x.transpose(0, 1)) if self.tokens_first else (lambda x: x)
            changed = turned(change(turned(tokens)))
            return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})

        handle = self.last_block.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def tower_of(model: nn.Module) -> Tower:
    """Return the `Tower` of a model.

    Args:
        model: from `load`; an open_clip model; or a CLIP or SigLIP model of transformers; or one of these `unwrapped`
            finds. One that `integrations.add_alpha` has given an alpha channel takes alpha.

    Raises:
        TypeError: it is none of these, or does not see squares.
    """
    model = unwrapped(model)
    if isinstance(model, CLIP):
        visual = model.visual
        grid = visual.input_resolution // visual.conv1.kernel_size[0]
        preprocess = Preprocess(visual.input_resolution)
        return Tower(
            model,
            preprocess,
            model.encode_image,
            takes_alpha=True,
            last_block=visual.transformer.blocks[-1],
            tokens_first=True,
            grid=grid,
        )
    if _is_of_open_clip(model):
        return _with_alpha(_of_open_clip(model))
    if _is_of_transformers(model):
        return _with_alpha(_of_transformers(model))
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    inside = next(
        (name for name, m in parts if isinstance(m, CLIP) or _is_of_open_clip(m) or _is_of_transformers(m)), ""
    )
    raise TypeError(
        f"the model is {type(model).__name__}, expected one from alpha_clip.load or open_clip.create_model, or a "
        f"CLIPModel or SiglipModel of transformers{f': pass the one it holds, model.{inside}' if inside else ''}"
    )


def _is_of_open_clip(model: Any) -> bool:
    return hasattr(getattr(model, "visual", None), "image_size")


def _is_of_transformers(model: Any) -> bool:
    return hasattr(model, "get_image_features") and hasattr(getattr(model, "config", None), "vision_config")


def _with_alpha(tower: Tower) -> Tower:
    """Let the tower take alpha if its patch embedding has a fourth channel."""
    if not any(isinstance(m, nn.Conv2d) and hasattr(m, "alpha") for m in tower.model.modules()):
        return tower

    def features(rgb: Tensor, alpha: Tensor | None = None) -> Tensor:
        if alpha is None:
            return tower.features(rgb)
        return tower.features(torch.cat([rgb.expand(len(alpha), -1, -1, -1), alpha.to(rgb)], dim=1))

    return replace(tower, features=features, takes_alpha=True)


def _of_open_clip(model: Any) -> Tower:
    visual = model.visual
    settings = getattr(visual, "preprocess_cfg", {})  # of those that its create_model built
    mean, std = settings.get("mean", IMAGE_MEAN), settings.get("std", IMAGE_STD)  # open_clip's own defaults
    preprocess = Preprocess(_side(visual.image_size), mean, std)
    transformer: Any = getattr(visual, "transformer", None)
    class_token = getattr(visual, "pool_type", None) == "tok" and getattr(visual, "attn_pool", None) is None
    if not class_token or not hasattr(transformer, "resblocks"):
        return Tower(model, preprocess, model.encode_image)
    return Tower(
        model,
        preprocess,
        model.encode_image,
        last_block=transformer.resblocks[-1],
        tokens_first=not getattr(transformer, "batch_first", False),  # open_clip 2.23 has no choice
        grid=visual.grid_size[0],
    )


def _of_transformers(model: Any) -> Tower:
    kind, vision = model.config.model_type, model.config.vision_config
    if kind not in _NORMALISATION:
        raise TypeError(f"the model is transformers' {kind!r}, expected one of {', '.join(map(repr, _NORMALISATION))}")
    mean, std = _NORMALISATION[kind]
    settings = getattr(model, "preprocess_cfg", {})  # of the image processor that lay beside the weights
    preprocess = Preprocess(_side(vision.image_size), settings.get("mean", mean), settings.get("std", std))

    def features(rgb: Tensor) -> Tensor:
        return features_of(model.get_image_features(pixel_values=rgb))

    if kind != "clip":
        return Tower(model, preprocess, features)
    last, grid = model.vision_model.encoder.layers[-1], vision.image_size // vision.patch_size
    return Tower(model, preprocess, features, last_block=last, grid=grid)


def features_of(output: Any) -> Tensor:
    """Return the features (B, D) in what transformers' `get_image_features` or `get_text_features` returns."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output  # the latter since transformers 5
    return features


def _side(size: int | tuple[int, int]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise TypeError(f"the model sees {height} x {width} pixels, expected a square")
    return height
