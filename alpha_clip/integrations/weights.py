"""Load the Alpha-CLIP authors' weights into towers of other libraries, matched by module, as names differ."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..api import load
from ..errors import IncompatibleCheckpoint
from ..model import HEAD_WIDTH, VisionTransformer
from ..transformer import ResidualAttentionBlock
from .towers import add_alpha, alpha_weight, has_alpha

Pair = tuple[str, Any, Tensor]  # a description, the parameter to fill, its new values

_PRECISE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Model types of transformers whose `visual_projection` is part of the image tower; in others, it is not.
_PROJECTED = (
    "clip",
    "clip_vision_model",
    "clipseg",
    "altclip",
    "chinese_clip",
    "metaclip_2",
    "metaclip_2_vision_model",
)


def load_alpha_weights(
    tower: nn.Module,
    name: str | os.PathLike[str],
    alpha_vision_ckpt_pth: str | os.PathLike[str] = "auto",
    *,
    trust: bool = False,
) -> nn.Module:
    """Copy the whole image tower of an alpha model, alpha weights included, into a CLIP ViT of another library.

    Args:
        tower: with or without an alpha channel: transformers' `CLIPVisionModel`, `CLIPVisionModelWithProjection`,
            `CLIPModel` or a model around one of them (LLaVA); open_clip's or OpenAI's CLIP or its image tower; the
            ViT-L of LAVIS's BLIP-2, which lacks the last blocks and takes the weights of the others.
        name, alpha_vision_ckpt_pth, trust: as for `alpha_clip.load`.

    Returns:
        `tower`. Only its image tower has changed, which includes the projection in CLIP's own models.

    Raises:
        IncompatibleCheckpoint: the tower has another architecture; nothing was changed.
        ValueError: there are several such towers, or the weights are quantised, computed or on the meta device;
            nothing was changed.
        RuntimeError: as `alpha_clip.load` raises it.
    """
    source = load(name, "cpu", alpha_vision_ckpt_pth=alpha_vision_ckpt_pth, dtype=torch.float32, trust=trust)[0].visual
    return copy_tower(source, tower)


@torch.no_grad()
def copy_tower(source: VisionTransformer, tower: nn.Module) -> nn.Module:
    """Copy a loaded image tower into `tower`, as `load_alpha_weights` does by name, and with the same errors."""
    target, pairs = _clip_tower(tower, source)
    if unlike := [f"{what} is {_kind(to)}" for what, to, _ in pairs if not _is_plain(to)]:
        raise ValueError(
            f"{type(tower).__name__} is quantised, or something computes its weights: {_some(unlike)}. Expected "
            "parameters of float16, bfloat16, float32 or float64: load it in full precision, put the alpha weights in, "
            "and quantise after, as by save_pretrained and integrations.from_pretrained(..., quantization_config=...)"
        )
    wrong = [f"{what} {tuple(to.shape)}, not {tuple(of.shape)}" for what, to, of in pairs if to.shape != of.shape]
    if wrong:
        raise IncompatibleCheckpoint(
            f"{type(tower).__name__} has another size than these weights: {_some(wrong)}. Expected the same ViT: pass "
            "the weights of its base"
        )
    if absent := [what for what, to, _ in pairs if to.is_meta]:
        raise ValueError(
            f"{type(tower).__name__} has no values in {_some(absent)}, which are on the meta device: put the weights "
            "in when all is loaded, and before anything offloads it"
        )
    if not has_alpha(target):
        add_alpha(target)
    for _, to, of in pairs:
        to.copy_(of)
    alpha_weight(target).copy_(source.conv1_alpha.weight)
    return tower


def _is_plain(weight: Any) -> bool:
    """Whether values can be copied into it. That it is quantised may show in its type alone."""
    return type(weight) is nn.Parameter and weight.dtype in _PRECISE


def _kind(weight: Any) -> str:
    return type(weight).__name__ + (f" of {weight.dtype}" if isinstance(weight, Tensor) else "")


def _some(named: Sequence[str]) -> str:
    return ", ".join(named[:3]) + (" and more" if len(named) > 3 else "")


_OPENAI = ("ln_pre", "class_embedding", "conv1", "transformer")
_TRANSFORMERS = ("pre_layrnorm", "embeddings", "encoder", "post_layernorm")


def _clip_tower(tower: nn.Module, source: VisionTransformer) -> tuple[nn.Module, list[Pair]]:
    """The only CLIP ViT in `tower`, and the pairs that copy `source` into it.

    Raises:
        IncompatibleCheckpoint: there is none.
        ValueError: there are several.
    """
    found: dict[int, tuple[str, nn.Module]] = {}  # by first norm: wrappers may expose what they wrap
    for name, module in tower.named_modules():
        for parts in (_OPENAI, _TRANSFORMERS):
            if all(hasattr(module, part) for part in parts):
                found[id(getattr(module, parts[0]))] = name, module
    if len(found) > 1:
        names = ", ".join(name for name, _ in found.values())
        raise ValueError(f"{type(tower).__name__} has {len(found)} CLIP ViTs, {names}: pass one of them")
    for _, module in found.values():
        if hasattr(module, "ln_pre"):
            return module, list(_openai_pairs(source, module))
        return module, list(_transformers_pairs(source, module, _projection(tower, module)))
    raise IncompatibleCheckpoint(
        f"{type(tower).__name__} has no CLIP ViT of transformers, open_clip or OpenAI in it. These weights fit that "
        "architecture alone: EVA's (BLIP-2 with ViT-g), SigLIP's and DINO's towers need alpha weights of their own"
    )


def _projection(model: nn.Module, tower: nn.Module) -> Any:
    for module in model.modules():
        kind = getattr(getattr(module, "config", None), "model_type", None)
        if kind in _PROJECTED and "visual_projection" in dict(module.named_children()) and tower in module.modules():
            return module.visual_projection
    return None


def _openai_pairs(source: VisionTransformer, target: Any) -> Iterator[Pair]:
    """Pairs for a tower in OpenAI's names: open_clip's, or that of LAVIS's BLIP-2, whose ViT-L has 21 blocks."""
    blocks, cut = target.transformer.resblocks, not hasattr(target, "ln_post")
    quick = _is_quick(blocks[0].mlp)
    _check(source, len(blocks), blocks[0].attn.num_heads, quick, "open_clip: ...-quickgelu", cut)
    _check_norms(source, target)
    if (pool := getattr(target, "pool_type", "tok")) != "tok":
        raise IncompatibleCheckpoint(f"the tower has pool_type={pool!r}, expected 'tok': CLIP reads the class token")
    alphas = ("conv1.alpha", "conv1_alpha.weight")
    ours, theirs = ({n: p for n, p in module.named_parameters() if n not in alphas} for module in (source, target))
    for name in theirs if cut else ours | theirs:
        if name not in ours or name not in theirs:
            raise IncompatibleCheckpoint(
                f"{name} is in one of {type(target).__name__} and these weights, expected CLIP's own ViT"
            )
        yield name, theirs[name], ours[name]


def _transformers_pairs(source: VisionTransformer, target: Any, projection: Any) -> Iterator[Pair]:
    layers = target.encoder.layers
    _check_parts(target, (*_TRANSFORMERS,))
    _check_parts(target.embeddings, ("class_embedding", "patch_embedding", "position_embedding"))
    for layer in layers:
        _check_parts(layer, ("self_attn", "layer_norm1", "mlp", "layer_norm2"))
        _check_parts(layer.self_attn, ("q_proj", "k_proj", "v_proj", "out_proj"))
        _check_parts(layer.mlp, ("fc1", "fc2"))
    heads = layers[0].self_attn.num_heads
    _check(source, len(layers), heads, target.config.hidden_act == "quick_gelu", "hidden_act='quick_gelu'")
    _check_norms(source, target)
    embeddings = target.embeddings
    yield "class embedding", embeddings.class_embedding, source.class_embedding
    yield "patch embedding", _parameter(embeddings.patch_embedding), source.conv1.weight
    yield "positions", _parameter(embeddings.position_embedding), source.positional_embedding
    yield from _module("first norm", target.pre_layrnorm, source.ln_pre)  # sic
    yield from _module("last norm", target.post_layernorm, source.ln_post)
    for i, (layer, block) in enumerate(zip(layers, source.transformer.blocks, strict=True)):
        yield from _block(f"block {i}", layer, block)
    if projection is not None and source.proj is not None:
        yield "projection", _parameter(projection), source.proj.T


def _block(name: str, layer: Any, block: ResidualAttentionBlock) -> Iterator[Pair]:
    for part, weight, bias in zip(
        ("q_proj", "k_proj", "v_proj"),
        block.attn.in_proj_weight.chunk(3),
        block.attn.in_proj_bias.chunk(3),
        strict=True,
    ):
        linear = getattr(layer.self_attn, part)
        yield f"{name} {part}", _parameter(linear), weight
        yield f"{name} {part} bias", _parameter(linear, "bias"), bias
    yield from _module(f"{name} output", layer.self_attn.out_proj, block.attn.out_proj)
    yield from _module(f"{name} norm 1", layer.layer_norm1, block.ln_1)
    yield from _module(f"{name} norm 2", layer.layer_norm2, block.ln_2)
    yield from _module(f"{name} MLP 1", layer.mlp.fc1, block.mlp.c_fc)
    yield from _module(f"{name} MLP 2", layer.mlp.fc2, block.mlp.c_proj)


def _module(name: str, target: Any, source: Any) -> Iterator[Pair]:
    yield name, _parameter(target), source.weight
    yield f"{name} bias", _parameter(target, "bias"), source.bias


def _parameter(module: Any, name: str = "weight") -> Any:
    return getattr(module, name, None)  # quantised modules have other names for it


def _is_quick(mlp: Any) -> bool:
    return any("quickgelu" in type(module).__name__.lower() for module in mlp.modules())


def _check(source: VisionTransformer, layers: int, heads: int, quick: bool, remedy: str, cut: bool = False) -> None:
    """Check what shapes do not show. A tower that is `cut` may have fewer blocks than `source`, but not more."""
    depth, width = len(source.transformer.blocks), source.conv1.out_channels
    if (min(layers, depth) if cut else depth, width // HEAD_WIDTH) != (layers, heads):
        raise IncompatibleCheckpoint(
            f"the tower has {layers} blocks of {heads} heads, expected {depth}{' at most' if cut else ''} of "
            f"{width // HEAD_WIDTH}: pass the weights of its base"
        )
    if not quick:
        raise IncompatibleCheckpoint(f"the tower has another activation than CLIP's QuickGELU: make it with {remedy}")


def _check_norms(source: VisionTransformer, target: nn.Module) -> None:
    eps = source.ln_pre.eps
    if other := next((m.eps for m in target.modules() if getattr(m, "eps", eps) != eps), None):
        raise IncompatibleCheckpoint(f"the tower has norms of eps {other}, expected {eps}: make it with that")


def _check_parts(module: nn.Module, expected: Collection[str]) -> None:
    """Raise unless exactly the expected parts of `module` hold parameters; those of adapters lie deeper."""
    parts = {name for name, _ in module.named_parameters(recurse=False)}
    parts |= {name for name, part in module.named_children() if any(True for _ in part.parameters())}
    if odd := sorted(parts ^ set(expected)):
        raise IncompatibleCheckpoint(
            f"{', '.join(odd)} is in one of {type(module).__name__} and these weights, expected CLIP's own ViT"
        )
