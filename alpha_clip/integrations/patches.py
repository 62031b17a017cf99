"""Patch embeddings with an alpha channel beside their RGB weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..inputs import FOREGROUND

_Block: TypeAlias = dict[int, Tensor]  # what one `given` holds: alpha by the id of each patch embedding
# The blocks entered and not yet left, the latest last. A new thread has none: run it in `copy_context()`.
_FOCUS: ContextVar[tuple[_Block, ...]] = ContextVar("focus", default=())

_LEFT_ELSEWHERE = (
    "focus was left in another context than it was entered in, as when a server steps a generator, so the tower may "
    "have seen whole pictures: do not yield inside focus, but enter it again at each step, or pass the mask as a "
    "fourth channel of the pixels"
)


@contextmanager
def given(patches: Iterable[nn.Module], alpha: Tensor) -> Iterator[None]:
    """Within this block, `patches` see this alpha, unless their input brings its own. Of several, the latest counts.

    Raises:
        RuntimeError: the block is left in another context than it was entered in. Beside another error, a warning.
    """
    block = {id(each): alpha for each in patches}
    token = _FOCUS.set((*_FOCUS.get(), block))
    try:
        yield
    except BaseException:
        if not _leave(block, token):
            warnings.warn(_LEFT_ELSEWHERE, stacklevel=5)  # `given` and `focus`, each within contextlib
        raise
    if not _leave(block, token):
        raise RuntimeError(_LEFT_ELSEWHERE)


def _leave(block: _Block, token: Token[tuple[_Block, ...]]) -> bool:
    """Take back this block alone, as blocks may be left in any order; return whether it was entered in this context."""
    rest = tuple(each for each in _FOCUS.get() if each is not block)
    try:
        _FOCUS.reset(token)  # for its check of the context; the value comes next
    except ValueError:
        block.clear()  # the context that still holds it is out of reach
        return False
    finally:
        _FOCUS.set(rest)
    return True


class AlphaConv2d(nn.Conv2d):
    """A patch convolution over RGB plus one over alpha, which has no bias and starts at zero.

    It holds the weights of the convolution that it replaces, the same tensors under the same names, and one more,
    ``alpha``, (width, 1, p, p) for patches of p pixels. Alpha is +1.923 where the model should look, -1.923 elsewhere.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(**_sizes(conv), device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        with torch.inference_mode(False):  # tensors made in inference mode cannot be trained
            self.alpha = nn.Parameter(torch.zeros_like(conv.weight[:, :1]).contiguous())
        _replace(self, conv)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed pixels (B, 3, H, W), or (B, 4, H, W) with alpha behind RGB. Without alpha, it is the whole image."""
        rgb = pixels[:, :3]
        if pixels.shape[1] > 4:
            raise ValueError(f"pixels are {tuple(pixels.shape)}, expected 3 channels, or 4 with alpha as the last")
        alpha = pixels[:, 3:] if pixels.shape[1] == 4 else focused(self, rgb, rgb.shape[-2:])
        return super().forward(rgb) + self._embed_alpha(alpha, rgb)

    def _embed_alpha(self, alpha: Tensor | None, rgb: Tensor) -> Tensor:
        if alpha is None:  # without padding, all patches give the same: one is enough
            size = self.kernel_size if self.padding == (0, 0) else rgb.shape[-2:]
            alpha = rgb.new_full((1, 1, *size), FOREGROUND)
        return F.conv2d(alpha.to(self.alpha.dtype), self.alpha, None, self.stride, self.padding, self.dilation)


class AlphaLinear(nn.Linear):
    """`AlphaConv2d` for packed patches, (B, N, 3pp), as in SigLIP 2: alpha is the last pp values of (B, N, 4pp).

    `by_pixel` is for towers that pack pictures of four channels themselves: alpha is then the last value of each pixel.
    """

    def __init__(self, linear: nn.Linear, by_pixel: bool = False) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        with torch.inference_mode(False):  # as above
            self.alpha = nn.Parameter(linear.weight.new_zeros(linear.out_features, linear.in_features // 3))
        self.by_pixel = by_pixel
        _replace(self, linear)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches (B, N, 3pp), or (B, N, 4pp) with alpha behind RGB. Without alpha, it is the whole image."""
        pixels = self.in_features // 3
        if patches.shape[-1] not in (3 * pixels, 4 * pixels):
            raise ValueError(
                f"patches are {tuple(patches.shape)}, expected {self.in_features} values each, or {4 * pixels} with "
                "alpha behind them"
            )
        alpha: Tensor | None
        if patches.shape[-1] == 3 * pixels:
            rgb, alpha = patches, focused(self, patches, (patches.shape[-2], pixels))
        elif self.by_pixel:
            each = patches.unflatten(-1, (pixels, 4))  # (B, N, pp, 4)
            rgb, alpha = each[..., :3].flatten(-2), each[..., 3]
        else:
            rgb, alpha = patches[..., : self.in_features], patches[..., self.in_features :]
        if alpha is None:
            alpha = rgb.new_full((1, 1, pixels), FOREGROUND)
        return super().forward(rgb) + F.linear(alpha.to(self.alpha.dtype), self.alpha)


def without_alpha(patches: AlphaConv2d | AlphaLinear) -> nn.Module:
    """Return the module that `patches` replaced, with the weights as they are now."""
    before: nn.Conv2d | nn.Linear = patches.__dict__["_before"]
    before.weight, before.bias = patches.weight, patches.bias
    _share_hooks(patches, before)
    return before.train(patches.training)


def _replace(made: nn.Module, before: nn.Conv2d | nn.Linear) -> None:
    made.__dict__["_before"] = before  # past __setattr__, which would make it a submodule
    _share_hooks(before, made)
    made.train(before.training)


def _share_hooks(source: nn.Module, target: nn.Module) -> None:
    """Let both modules share one dictionary of hooks of each kind, so that a handle removes its hook from both."""
    vars(target).update({name: vars(source)[name] for name in vars(nn.Module()) if "hook" in name})


def _sizes(conv: nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None}


def focused(patches: nn.Module, rgb: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor | None:
    """The alpha that `given` holds for `patches`, checked against what they see; None: it holds none."""
    alpha: Tensor | None = None
    for block in _FOCUS.get():
        alpha = block.get(id(patches), alpha)
    if alpha is None:
        return None
    if len(alpha) not in (1, len(rgb)) or tuple(alpha.shape[-2:]) != tuple(size):
        count = "1 mask" if len(rgb) == 1 else f"1 or {len(rgb)} masks"
        raise ValueError(
            f"the alpha in focus is {tuple(alpha.shape)}, but the tower sees {tuple(rgb.shape)}: make it {count} of "
            f"{tuple(size)}, such as by the processor that makes the pixels"
        )
    return alpha.to(rgb.device)
