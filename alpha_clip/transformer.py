"""The transformer of both towers, and the tests that say when a shortcut may be taken through it.

Parameter names, module names and call signatures are those of OpenAI's CLIP. Tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

# On CPUs, scaled_dot_product_attention in half precision is slower than two matrix products up to about this many keys.
# For gradients it stays: the products would keep all the weights for the way back.
_PRODUCTS_UP_TO = 1024


class LayerNorm(nn.LayerNorm):
    """Layer norm whose inputs may have another precision than its weights; the kernels accumulate in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class QuickGELU(nn.Module):
    """The approximation of GELU that OpenAI's CLIP was trained with, x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
            return x * torch.sigmoid(1.702 * x)
        if x.requires_grad and torch.is_grad_enabled():
            return cast(Tensor, _QuickGELU.apply(x))
        return _QuickGELU.forward(x)


class _QuickGELU(torch.autograd.Function):
    """QuickGELU in one tensor of memory where the formula takes three; keeps only its input for the backward pass."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (1.702 * x).sigmoid_().mul_(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(gradient, 1.702 * x)  # x sigmoid(1.702 x) is silu(1.702 x) / 1.702
        s = torch.sigmoid(1.702 * x)  # second derivatives are wanted, and that kernel has none
        return gradient * (s + 1.702 * x * s * (1 - s))


class Attention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that also loads the parameter names of the Alpha-CLIP authors' checkpoints.

    The call that CLIP's blocks make is computed here, with fewer copies; every other one is the parent's.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        masked_otherwise = key_padding_mask is not None or is_causal
        masked_otherwise |= attn_mask is not None and not attn_mask.is_floating_point()
        if need_weights or masked_otherwise or value is not key or key.ndim != 3 or (self.dropout and self.training):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        return self._attend(query, key, attn_mask), None

    def _attend(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from (L, N, D) to (S, N, D), keys and values at once; `mask` is (L, S) or (N * heads, L, S)."""
        width, weight, bias = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        if query is key:
            q, k, v = self._heads(F.linear(key, weight, bias))
        else:
            (q,) = self._heads(F.linear(query, weight[:width], bias[:width]))
            k, v = self._heads(F.linear(key, weight[width:], bias[width:]))
        if mask is not None:
            mask = mask.to(q.dtype)
            mask = mask if mask.ndim == 2 else mask.unflatten(0, (-1, self.num_heads))
        if q.device.type == "cpu" and q.element_size() == 2 and key.shape[0] <= _PRODUCTS_UP_TO and not q.requires_grad:
            logits = q * self.head_dim**-0.5 @ k.mT
            x = (logits if mask is None else logits + mask).softmax(-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v, mask)
        x = x.permute(2, 0, 1, 3).flatten(2)  # (N, heads, L, D / heads) -> (L, N, D)
        return F.linear(x, self.out_proj.weight, self.out_proj.bias)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split (L, N, k * D) into k of (N, heads, L, D / heads)."""
        return x.unflatten(-1, (-1, self.num_heads, self.head_dim)).permute(2, 1, 3, 0, 4).unbind(0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for kind in ("weight", "bias"):
            theirs = f"{prefix}in_proj.{kind}"
            if theirs in state_dict:
                state_dict[f"{prefix}in_proj_{kind}"] = state_dict.pop(theirs)
        super()._load_from_state_dict(state_dict, prefix, *args)


class MLP(nn.Sequential):
    """The block's feed-forward part, (..., D) -> (..., D), with OpenAI's names for its three steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, width * 4)
        self.gelu = QuickGELU()
        self.c_proj = nn.Linear(width * 4, width)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block, (L, N, D) -> (L, N, D).

    ``attn_mask`` is (L, L), added to the attention logits, or None. A shorter input uses its top left corner.
    """

    attn_mask: Tensor | None

    def __init__(self, d_model: int, n_head: int, attn_mask: Tensor | None = None) -> None:
        super().__init__()
        self.attn = Attention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model)
        self.mlp = MLP(d_model)
        self.ln_2 = LayerNorm(d_model)
        self.register_buffer("attn_mask", attn_mask, persistent=False)
        self._read: tuple[Tensor, int, bool] | None = None  # by `is_causal`

    def attention(self, x: Tensor) -> Tensor:
        mask = None if self.attn_mask is None else self.attn_mask[: x.shape[0], : x.shape[0]].to(x.dtype)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

    def first(self, x: Tensor) -> Tensor:
        """Return the first row of `forward`'s output, (1, N, D)."""
        return self.only(x, x.new_zeros(x.shape[1], dtype=torch.long))

    def only(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return row ``rows[i]`` of `forward`'s output for each member i, (1, N, D): one query each, so far cheaper."""
        each = torch.arange(rows.shape[0], device=rows.device)
        mask = None
        if self.attn_mask is not None:
            mask = self.attn_mask[rows, : x.shape[0]].repeat_interleave(self.attn.num_heads, 0)[:, None].to(x.dtype)
        y = self.ln_1(x)
        x = x[rows, each][None] + self.attn(y[rows, each][None], y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))

    def is_causal(self) -> bool:
        """Whether no position sees a later one. Reading the mask waits for the device, so each mask is read once."""
        mask = self.attn_mask
        if mask is None:
            return False
        version = -1 if mask.is_inference() else mask._version  # -1: nobody counts the writes to it
        if self._read is None or self._read[0] is not mask or self._read[1] != version or version < 0:
            ahead = torch.full_like(mask, -math.inf).triu_(1)
            self._read = mask, version, torch.equal(mask.triu(1), ahead)
        return self._read[2]


class Transformer(nn.Module):
    """A stack of blocks, (L, N, D) -> (L, N, D).

    With ``checkpointing``, training keeps only the blocks' inputs, and computes the rest again for the backward pass.
    """

    checkpointing = False

    def __init__(self, width: int, layers: int, heads: int, attn_mask: Tensor | None = None) -> None:
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width, heads, attn_mask) for _ in range(layers)))

    @property
    def blocks(self) -> list[ResidualAttentionBlock]:
        return cast("list[ResidualAttentionBlock]", list(self.resblocks))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.blocks, x) if self.checkpointing else self.resblocks(x)

    def run(self, blocks: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        """Run `x` through some of the blocks."""
        for block in blocks:
            keep = not self.checkpointing or not torch.is_grad_enabled()
            x = block(x) if keep else checkpoint(block, x, use_reentrant=False)
        return x


def rows_of(transformer: Transformer, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return row ``rows[i]`` of `transformer`'s output for each member i of a batch (L, N, D): (N, D). None: row 0.

    CLIP needs no more of it, so the last block computes no more, unless a hook could observe the rest.
    """
    if is_watched(transformer, slice(-1, None)):
        y = transformer(x)
        return y[0] if rows is None else y[rows, torch.arange(rows.shape[0], device=rows.device)]
    *before, last = transformer.blocks
    one = last.first if rows is None else partial(last.only, rows=rows)
    return transformer.run([*before, one], x)[0]


def is_watched(transformer: Transformer, blocks: slice) -> bool:
    """Whether a hook or a changed module could observe what a shortcut through these blocks of `transformer` skips."""
    if type(transformer) is not Transformer or type(transformer.resblocks) is not nn.Sequential:
        return True
    chosen = transformer.blocks[blocks]
    if any(type(block) is not ResidualAttentionBlock or type(block.attn) is not Attention for block in chosen):
        return True
    return is_changed(transformer, transformer.resblocks, *(part for block in chosen for part in block.modules()))


def is_changed(*modules: nn.Module) -> bool:
    """Whether one of these modules is hooked, replaced, patched or parametrised."""
    return _has_any_global_hook() or any(
        _OWN.get(type(module)) != _methods(type(module))
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or "attention" in module.__dict__
        for module in modules
    )


def _methods(kind: type[nn.Module]) -> tuple[Any, Any]:
    return kind.forward, getattr(kind, "attention", None)


# What the towers are built of, as it was when this module was imported.
_OWN: dict[type[nn.Module], tuple[Any, Any]] = {
    kind: _methods(kind)
    for kind in (
        Transformer,
        nn.Sequential,
        ResidualAttentionBlock,
        Attention,
        NonDynamicallyQuantizableLinear,
        LayerNorm,
        MLP,
        QuickGELU,
        nn.Linear,
        nn.Embedding,
    )
}


def is_readable(x: Tensor) -> bool:
    """Whether Python may branch on the values of `x`: nothing compiles, traces, transforms or captures the code."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or type(x) is not Tensor
        or x.is_meta
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )
