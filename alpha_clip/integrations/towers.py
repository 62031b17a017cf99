"""Add an alpha channel to anybody's image tower, and remove it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..inputs import FOREGROUND, normalised
from ..model import VisionTransformer as OwnTower
from .patches import AlphaConv2d, AlphaLinear, focused, given, without_alpha

_HANDLES = "_alpha_handles"  # where a module holds those of our hooks

Tower = TypeVar("Tower", bound=nn.Module)
Patches = AlphaConv2d | AlphaLinear | OwnTower


def add_alpha(tower: Tower) -> Tower:
    """Give an image tower an alpha channel, in place; nothing it returns changes until alpha weights come in.

    Then its pixels may have a fourth channel, (B, 4, H, W), ``(mask - 0.5) / 0.26``; or `focus` holds a mask for it.
    Without either it sees the whole image. Its own weights, and their names, stay; one parameter comes, ``alpha``,
    beside the weight of the patch embedding.

    Args:
        tower: a module with one patch embedding of RGB in it: an image tower of transformers (CLIP, SigLIP, SigLIP 2,
            BLIP-2, DINOv2, DINOv3, ...), of open_clip, timm or OpenAI's clip, or a model around one. One of this
            package has the weights already; it is taught the fourth channel and `focus`.

    Returns:
        `tower` itself.

    Raises:
        ValueError: it has no patch embedding of RGB, or several, or one that something has wrapped or reads past, or
            whose weights are elsewhere (on the meta device, as when they are offloaded), or an alpha channel already.
    """
    if found := list(_with_alpha(tower)):
        raise ValueError(f"{type(tower).__name__} has an alpha channel already, in {', '.join(n for n, _ in found)}")
    if own := [module for module in tower.modules() if isinstance(module, OwnTower)]:
        if len(own) > 1:
            raise ValueError(f"{type(tower).__name__} has {len(own)} image towers of this package: pass one of them")
        setattr(own[0], _HANDLES, [own[0].register_forward_pre_hook(_before_own, with_kwargs=True)])
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


def remove_alpha(tower: Tower) -> Tower:
    """Take away what `add_alpha` gave: the tower is as before, with the same weights under the same names.

    Raises:
        ValueError: the tower has no alpha channel, or adapters have copies of it.
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
    """Hold a mask for a tower while this lasts, for pipelines that make their own pixels:
    ``with focus(pipe.image_encoder, alpha): pipe(image)``.

    The mask is that of this thread, and of the `contextvars.copy_context` that a new thread is run in; one that is
    started otherwise sees the whole image. So do the later steps of a generator that a server runs in a fresh context
    each: do not ``yield`` inside. Where several masks are in focus, the latest counts.

    Args:
        tower: one with an alpha channel, or a model around it.
        alpha: (1 or B, 1, H, W) or (1 or B, H, W), of the height and width that the tower sees. Floating:
            ``(mask - 0.5) / 0.26``; bool: a mask. For packed patches, (1 or B, N, pp).

    Raises:
        TypeError: alpha is no tensor of floats or bools.
        ValueError: the tower has no alpha channel; or alpha has another shape, or does not fit when it is used.
        RuntimeError: it is left in another context than it was entered in; beside another error, that is a warning.
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
    """Return a tower's alpha weights: (width, 1, p, p), or (width, pp) for packed patches. Errors as in `alpha_of`."""
    _, patches = alpha_of(tower)
    return patches.conv1_alpha.weight if isinstance(patches, OwnTower) else patches.alpha


def alpha_of(tower: nn.Module) -> tuple[str, Patches]:
    """Return name and module of the patch embedding with alpha in `tower`, or of the tower itself if it is our own.

    Of the copies that PEFT's `modules_to_save` makes, it is the one in use.

    Raises:
        ValueError: there is none, or several.
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
    """Yield the modules that PEFT keeps beside the one in use: the original, and copies for other adapters."""
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
    """Whether `parent` packs pictures of four channels itself, as timm's NaFlexEmbeds; transformers' does not."""
    return getattr(parent, "is_linear", False) and getattr(parent, "channels_last", True)  # older timm has no choice


def _check_plain(named: str, patches: nn.Conv2d | nn.Linear) -> None:
    """Raise ValueError for a subclass, another forward or a computed weight, whose effect would be lost."""
    replaced = "forward" in vars(patches) and not hasattr(patches, "_hf_hook")  # that one moves inputs to a device
    if type(patches) not in (nn.Conv2d, nn.Linear) or replaced or "weight" not in dict(patches.named_parameters()):
        changed = " with another forward or a computed weight" if type(patches) in (nn.Conv2d, nn.Linear) else ""
        raise ValueError(
            f"{named} is {type(patches).__name__}{changed}, expected a plain Conv2d or Linear: add alpha before "
            "anything wraps or quantises it"
        )
    if patches.weight.is_meta:
        raise ValueError(
            f"{named} has no values, its weight is on the meta device: add alpha when they are loaded, and before "
            "anything offloads them"
        )


# Towers such as DINOv2's count the channels before the convolution sees them: they count four, and are given four.


def _count_four(parent: nn.Module) -> None:
    parent.num_channels = 4  # type: ignore[assignment]
    setattr(parent, _HANDLES, [parent.register_forward_pre_hook(_before, with_kwargs=True)])


def _before(parent: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    pixels = args[0] if args else kwargs["pixel_values"]
    if pixels.shape[1] != 3:
        return args, kwargs
    alpha: Tensor | None = None
    for module in parent.modules():  # several where PEFT has copies of it, all with the same in focus
        if alpha is None and isinstance(module, AlphaConv2d):
            alpha = focused(module, pixels, pixels.shape[-2:])
    if alpha is None:
        alpha = pixels.new_full((1, 1, 1, 1), FOREGROUND)
    pixels = torch.cat([pixels, alpha.to(pixels.dtype).expand_as(pixels[:, :1])], dim=1)
    return ((pixels, *args[1:]), kwargs) if args else (args, kwargs | {"pixel_values": pixels})


def _before_own(visual: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Turn the fourth channel, or the mask in focus, into the argument `alpha` of our own tower."""
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
