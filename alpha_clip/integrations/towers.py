"""Add an alpha channel to image towers of other libraries, and remove it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..inputs import FOREGROUND, normalised
from ..model import VisionTransformer as OwnTower
from .patches import AlphaConv2d, AlphaLinear, focused, given, without_alpha

_HANDLES = "_alpha_handles"  # the attribute of a module that holds the handles of our hooks

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Patches = AlphaConv2d | AlphaLinear | OwnTower


def add_alpha(tower: AnyModule) -> AnyModule:
    """Give an image tower an alpha channel, in place. What it returns stays the same until it gets alpha weights.

    Its pixels may then have a fourth channel, (B, 4, H, W), ``(mask - 0.5) / 0.26``, or `focus` may hold a mask for
    it; without either, it sees the whole image. Its weights keep their names, and one parameter is added, ``alpha``,
    beside the weight of the patch embedding.

    Args:
        tower: a module with one RGB patch embedding in it: an image tower of transformers (CLIP, SigLIP, SigLIP 2,
            BLIP-2, DINOv2, DINOv3, ...), of open_clip, timm or OpenAI's clip, or a model around one. A tower of this
            package has alpha weights already, and only learns to take the fourth channel and `focus`.

    Returns:
        `tower` itself.

    Raises:
        ValueError: it has no RGB patch embedding, or several; the patch embedding is wrapped or bypassed, or its
            weights are on the meta device, as when they are offloaded; or it has an alpha channel already.
    """
    if found := list(_with_alpha(tower)):
        raise ValueError(f"{type(tower).__name__} has an alpha channel already, in {', '.join(n for n, _ in found)}")
    if own := [module for module in tower.modules() if isinstance(module, OwnTower)]:
        if len(own) > 1:
            raise ValueError(f"{type(tower).__name__} has {len(own)} image towers of this package: pass one of them")
        setattr(own[0], _HANDLES, [own[0].register_forward_pre_hook(_read_alpha, with_kwargs=True)])
        return tower
    name, patches = _patch_embedding(tower)
    _check_plain(f"the patch embedding of {type(tower).__name__}, {name},", patches)
    parent = tower.get_submodule(name.rpartition(".")[0])
    if getattr(parent, "patch_interpolator", None) is not None:  # timm's NaFlexEmbeds
        raise ValueError(
            f"{type(tower).__name__} resizes the weight of its patch embedding, {name}, past any alpha channel: make "
            "it with enable_patch_interpolator=False"
        )
    made = AlphaConv2d(patches) if isinstance(patches, nn.Conv2d) else AlphaLinear(patches, _packs_by_pixel(parent))
    setattr(parent, name.rpartition(".")[2], made)
    if isinstance(made, AlphaConv2d) and getattr(parent, "num_channels", None) == 3:
        _count_four(parent)
    return tower


def remove_alpha(tower: AnyModule) -> AnyModule:
    """Undo `add_alpha`: the tower is as before, with the same weights under the same names.

    Raises:
        ValueError: the tower has no alpha channel, or adapters hold copies of it.
    """
    name, patches = alpha_of(tower)
    if len(list(_with_alpha(tower))) > 1:
        raise ValueError(f"{type(tower).__name__} has copies of {name} for adapters: merge or unload them first")
    if isinstance(patches, OwnTower):
        _forget_hooks(patches)
        return tower
    parent = tower.get_submodule(name.rpartition(".")[0])
    if hasattr(parent, _HANDLES):
        _forget_hooks(parent)
        parent.num_channels = 3  # type: ignore[assignment]
    setattr(parent, name.rpartition(".")[2], without_alpha(patches))
    return tower


@contextmanager
def focus(tower: nn.Module, alpha: Tensor) -> Iterator[None]:
    """Within this block, a tower sees its input through a mask, for pipelines that make their own pixels:
    ``with focus(pipe.image_encoder, alpha): pipe(image)``.

    The mask holds for this thread, and for new threads that run in a `contextvars.copy_context`; other threads see the
    whole image. So do the later steps of a generator if a server runs each in a fresh context: do not ``yield`` inside.
    Where several masks are in focus, the one entered last counts.

    Args:
        tower: one with an alpha channel, or a model around it.
        alpha: (1 or B, 1, H, W) or (1 or B, H, W), of the height and width that the tower sees; for packed patches,
            (1 or B, N, pp). Either floats, ``(mask - 0.5) / 0.26``, or bools, the mask itself.

    Raises:
        TypeError: alpha is no tensor of floats or bools.
        ValueError: the tower has no alpha channel; alpha has another shape, or does not fit the pixels when it is used.
        RuntimeError: the block is left in another context than it was entered in; during another error, a warning.
    """
    _, patches = alpha_of(tower)
    if not isinstance(alpha, Tensor):
        raise TypeError(f"alpha is {type(alpha).__name__}, expected a tensor: torch.from_numpy(mask)[None]")
    if alpha.dtype == torch.bool:
        alpha = normalised(alpha)
    if not alpha.is_floating_point():
        raise TypeError(f"alpha has dtype {alpha.dtype}, expected floats, (mask - 0.5) / 0.26, or bools")
    packed = isinstance(patches, AlphaLinear)
    if not packed and alpha.ndim == 3:
        alpha = alpha[:, None]
    if alpha.ndim != (3 if packed else 4) or not (packed or alpha.shape[1] == 1):
        expected = "(1 or B, N, pp)" if packed else "(1 or B, 1, H, W) or (1 or B, H, W), each tile being one of B"
        raise ValueError(f"alpha is {tuple(alpha.shape)}, expected {expected}")
    with given([module for _, module in _with_alpha(tower)], alpha):
        yield


def has_alpha(tower: nn.Module) -> bool:
    """Whether `add_alpha` was called on it, or on something in it."""
    return any(True for _ in _with_alpha(tower))


def alpha_weight(tower: nn.Module) -> Tensor:
    """The alpha weights of a tower, (width, 1, p, p), or (width, pp) for packed patches. Raises as `alpha_of` does."""
    _, patches = alpha_of(tower)
    return patches.conv1_alpha.weight if isinstance(patches, OwnTower) else patches.alpha


def alpha_of(tower: nn.Module) -> tuple[str, Patches]:
    """Name and module of the patch embedding with alpha in `tower`; for a tower of this package, of the tower itself.

    Where PEFT's `modules_to_save` has made copies, it is the one in use.

    Raises:
        ValueError: there is none, or there are several.
    """
    idle = {id(module) for copy in _idle_copies(tower) for module in copy.modules()}
    found = [(name, module) for name, module in _with_alpha(tower) if id(module) not in idle]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(f"{type(tower).__name__} has no alpha channel: call add_alpha on it first")
    raise ValueError(f"{type(tower).__name__} has several, {', '.join(n for n, _ in found)}: pass one of the towers")


def _with_alpha(tower: nn.Module) -> Iterator[tuple[str, Patches]]:
    for name, module in tower.named_modules():
        if isinstance(module, (AlphaConv2d, AlphaLinear)) or (
            isinstance(module, OwnTower) and hasattr(module, _HANDLES)
        ):
            yield name, module


def _idle_copies(tower: nn.Module) -> Iterator[nn.Module]:
    """Yield the copies out of use: PEFT keeps the original beside a copy for each adapter, and runs one of them."""
    for module in tower.modules():
        copies: Any = getattr(module, "modules_to_save", None)
        if isinstance(copies, nn.ModuleDict):
            wrapper: Any = module
            active = [] if wrapper.disable_adapters else [name for name in wrapper.active_adapters if name in copies]
            used = copies[active[0]] if active else wrapper.original_module
            yield from (copy for copy in (wrapper.original_module, *copies.values()) if copy is not used)


def _patch_embedding(tower: nn.Module) -> tuple[str, nn.Conv2d | nn.Linear]:
    found = [(name, module) for name, module in tower.named_modules() if _is_patch_embedding(name, module)]
    if len(found) == 1 and found[0][0]:
        return found[0]
    listed = ", ".join(f"{name or 'itself'} ({type(module).__name__})" for name, module in found)
    raise ValueError(
        f"{type(tower).__name__} has {len(found) or 'no'} patch embeddings of RGB{': ' + listed if found else ''}. "
        "Expected one: pass the image tower alone, such as model.vision_tower or pipe.image_encoder"
    )


def _is_patch_embedding(name: str, module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.in_channels == 3
    # Packed patches: transformers' Siglip2VisionEmbeddings, timm's NaFlexEmbeds.
    last = name.rpartition(".")[2]
    side = (module.in_features / 3) ** 0.5 if isinstance(module, nn.Linear) else 0.5
    return last in ("patch_embedding", "proj") and "embed" in name and side == int(side)


def _packs_by_pixel(parent: nn.Module) -> bool:
    """Whether it packs pictures itself, pixel by pixel, as timm's NaFlexEmbeds; in transformers, processors pack."""
    channels_last = getattr(parent, "channels_last", True)  # older versions of timm have no choice
    return getattr(parent, "is_linear", False) and channels_last


def _check_plain(named: str, patches: nn.Conv2d | nn.Linear) -> None:
    """Raise if it is a subclass, or has another forward or a computed weight, which replacing it would lose."""
    subclass = type(patches) not in (nn.Conv2d, nn.Linear)
    replaced = "forward" in vars(patches) and not hasattr(patches, "_hf_hook")  # accelerate's only moves the input
    if subclass or replaced or "weight" not in dict(patches.named_parameters()):
        changed = "" if subclass else " with another forward or a computed weight"
        raise ValueError(
            f"{named} is {type(patches).__name__}{changed}, expected a plain Conv2d or Linear: add alpha before "
            "anything wraps or quantises it"
        )
    if patches.weight.is_meta:
        raise ValueError(
            f"{named} has no values, its weight is on the meta device: add alpha when they are loaded, and before "
            "anything offloads them"
        )


# Towers such as DINOv2 count channels before the convolution does: they are told four, and always given four.


def _count_four(parent: nn.Module) -> None:
    parent.num_channels = 4  # type: ignore[assignment]
    setattr(parent, _HANDLES, [parent.register_forward_pre_hook(_append_alpha, with_kwargs=True)])


def _append_alpha(parent: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    pixels = args[0] if args else kwargs["pixel_values"]
    if pixels.shape[1] != 3:
        return args, kwargs
    alpha: Tensor | None = None
    for module in parent.modules():  # PEFT may have several, all with the same mask in focus
        if alpha is None and isinstance(module, AlphaConv2d):
            alpha = focused(module, pixels, pixels.shape[-2:])
    if alpha is None:
        alpha = pixels.new_full((1, 1, 1, 1), FOREGROUND)
    pixels = torch.cat([pixels, alpha.to(pixels.dtype).expand_as(pixels[:, :1])], dim=1)
    return ((pixels, *args[1:]), kwargs) if args else (args, kwargs | {"pixel_values": pixels})


def _read_alpha(visual: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Pass a fourth channel, or the mask in focus, to a tower of this package, which takes alpha as an argument."""
    image, alpha = (*args, kwargs.get("alpha"))[:2] if args else (kwargs["image"], kwargs.get("alpha"))
    if alpha is None:
        if image.shape[-3] == 4:
            image, alpha = image[..., :3, :, :], image[..., 3:, :, :]
        else:
            alpha = focused(visual, image[..., :3, :, :], image.shape[-2:])
    return (image, alpha), {}


def _forget_hooks(module: nn.Module) -> None:
    for handle in getattr(module, _HANDLES, ()):
        handle.remove()
    if hasattr(module, _HANDLES):
        delattr(module, _HANDLES)
