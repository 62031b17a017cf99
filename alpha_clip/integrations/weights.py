"""The Alpha-CLIP authors' weights for others' towers: mapped by module, since names differ by version and owner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..api import load
from ..errors import IncompatibleCheckpoint
from ..model import HEAD_WIDTH, VisionTransformer
from ..transformer import ResidualAttentionBlock
from .towers import add_alpha, alpha_weight, has_alpha

Pair = tuple[str, Tensor, Tensor]  # what it is, where it goes, what goes there


def load_alpha_weights(
    tower: nn.Module,
    name: str | os.PathLike[str],
    alpha_vision_ckpt_pth: str | os.PathLike[str] = "auto",
    *,
    trust: bool = False,
) -> nn.Module:
    """Put the whole image tower of an alpha model, its alpha weights among them, into a CLIP ViT of another library.

    Args:
        tower: with an alpha channel, or not yet: transformers' `CLIPVisionModel`, `CLIPVisionModelWithProjection`,
            `CLIPModel` or a model around one of them (LLaVA); open_clip's or OpenAI's CLIP or its image tower; the
            ViT-L of LAVIS's BLIP-2, which ends before the last blocks and takes the first of these weights.
        name: the model, and where its alpha weights come from, as `alpha_clip.load` takes them.

    Returns:
        `tower`. What it has besides the image tower stays as it is.

    Raises:
        IncompatibleCheckpoint: it is another architecture; nothing has been changed then.
        ValueError: it has several such towers, or the weights are elsewhere (on the meta device); likewise.
        RuntimeError: as `alpha_clip.load`.
    """
    source = load(name, "cpu", alpha_vision_ckpt_pth=alpha_vision_ckpt_pth, dtype=torch.float32, trust=trust)[0].visual
    return copy_tower(source, tower)


@torch.no_grad()
def copy_tower(source: VisionTransformer, tower: nn.Module) -> nn.Module:
    """`load_alpha_weights` from a tower that is there."""
    target, pairs = _clip_tower(tower, source)
    wrong = [f"{what} {tuple(to.shape)}, not {tuple(of.shape)}" for what, to, of in pairs if to.shape != of.shape]
    if wrong:
        raise IncompatibleCheckpoint(
            f"{type(tower).__name__} has another size than these weights: {', '.join(wrong[:3])}"
            f"{' and more' * (len(wrong) > 3)}. Expected the same ViT: pass the weights of its base"
        )
    if absent := [what for what, to, _ in pairs if to.is_meta]:
        raise ValueError(
            f"{type(tower).__name__} has no values in {', '.join(absent[:3])}{' and more' * (len(absent) > 3)}, which "
            "are on the meta device: put the weights in when all is loaded, and before anything offloads it"
        )
    if not has_alpha(target):
        add_alpha(target)
    for _, to, of in pairs:
        to.copy_(of)
    alpha_weight(target).copy_(source.conv1_alpha.weight)
    return tower


_OPENAI = ("ln_pre", "class_embedding", "conv1", "transformer")
_TRANSFORMERS = ("pre_layrnorm", "embeddings", "encoder", "post_layernorm")


def _clip_tower(tower: nn.Module, source: VisionTransformer) -> tuple[nn.Module, list[Pair]]:
    """The one CLIP ViT in `tower`, and what of `source` goes where in it.

    Raises:
        IncompatibleCheckpoint: there is none.
        ValueError: there are several.
    """
    found: dict[int, tuple[str, nn.Module]] = {}  # by their first norm: what wraps a tower may pass on its attributes
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
        projection = next((m for n, m in tower.named_modules() if n.endswith("visual_projection")), None)
        return module, list(_transformers_pairs(source, module, projection))
    raise IncompatibleCheckpoint(
        f"{type(tower).__name__} has no CLIP ViT of transformers, open_clip or OpenAI in it. These weights fit that "
        "architecture alone: EVA's (BLIP-2 with ViT-g), SigLIP's and DINO's towers need alpha weights of their own"
    )


def _openai_pairs(source: VisionTransformer, target: Any) -> Iterator[Pair]:
    """OpenAI's names, which are ours; open_clip's too, LAVIS's in BLIP-2, whose ViT-L ends after 21 blocks."""
    blocks, cut = target.transformer.resblocks, not hasattr(target, "ln_post")
    quick = _activation(blocks[0].mlp)
    _check(source, len(blocks), blocks[0].attn.num_heads, quick, "open_clip: ...-quickgelu", cut)
    ours = {name: tensor for name, tensor in source.named_parameters() if not name.startswith("conv1_alpha")}
    theirs = {name: tensor for name, tensor in target.named_parameters() if name != "conv1.alpha"}
    for name in theirs if cut else ours:
        if name not in ours or name not in theirs:
            raise IncompatibleCheckpoint(
                f"{name} is in one of {type(target).__name__} and these weights, expected CLIP's own ViT"
            )
        yield name, theirs[name], ours[name]


def _transformers_pairs(source: VisionTransformer, target: Any, projection: Any) -> Iterator[Pair]:
    layers = target.encoder.layers
    heads = layers[0].self_attn.num_heads
    _check(source, len(layers), heads, target.config.hidden_act == "quick_gelu", "hidden_act='quick_gelu'")
    embeddings = target.embeddings
    yield "class embedding", embeddings.class_embedding, source.class_embedding
    yield "patch embedding", embeddings.patch_embedding.weight, source.conv1.weight
    yield "positions", embeddings.position_embedding.weight, source.positional_embedding
    yield from _module("first norm", target.pre_layrnorm, source.ln_pre)  # sic
    yield from _module("last norm", target.post_layernorm, source.ln_post)
    for i, (layer, block) in enumerate(zip(layers, source.transformer.blocks, strict=True)):
        yield from _block(f"block {i}", layer, block)
    if projection is not None and source.proj is not None:
        yield "projection", projection.weight, source.proj.T


def _block(name: str, layer: Any, block: ResidualAttentionBlock) -> Iterator[Pair]:
    for part, weight, bias in zip(
        ("q_proj", "k_proj", "v_proj"),
        block.attn.in_proj_weight.chunk(3),
        block.attn.in_proj_bias.chunk(3),
        strict=True,
    ):
        linear = getattr(layer.self_attn, part)
        yield f"{name} {part}", linear.weight, weight
        yield f"{name} {part} bias", linear.bias, bias
    yield from _module(f"{name} output", layer.self_attn.out_proj, block.attn.out_proj)
    yield from _module(f"{name} norm 1", layer.layer_norm1, block.ln_1)
    yield from _module(f"{name} norm 2", layer.layer_norm2, block.ln_2)
    yield from _module(f"{name} MLP 1", layer.mlp.fc1, block.mlp.c_fc)
    yield from _module(f"{name} MLP 2", layer.mlp.fc2, block.mlp.c_proj)


def _module(name: str, target: Any, source: Any) -> Iterator[Pair]:
    yield name, target.weight, source.weight
    yield f"{name} bias", target.bias, source.bias


def _activation(mlp: Any) -> bool:
    return any("quickgelu" in type(module).__name__.lower() for module in mlp.modules())


def _check(source: VisionTransformer, layers: int, heads: int, quick: bool, remedy: str, cut: bool = False) -> None:
    """What shapes alone do not tell; a tower that is `cut` has no more blocks than the weights, but may have fewer."""
    depth, width = len(source.transformer.blocks), source.conv1.out_channels
    if (min(layers, depth) if cut else depth, width // HEAD_WIDTH) != (layers, heads):
        raise IncompatibleCheckpoint(
            f"the tower has {layers} blocks of {heads} heads, expected {depth}{' at most' * cut} of "
            f"{width // HEAD_WIDTH}: pass the weights of its base"
        )
    if not quick:
        raise IncompatibleCheckpoint(f"the tower has another activation than CLIP's QuickGELU: make it with {remedy}")
