"""The least time a tower could take on this machine: its FLOPs at the best rate of the machine's matrix products.

The FLOPs are those of the plain computation, all tokens through all blocks, two for each multiply-add.
"""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F


def tower_flops(tokens: int, width: int, layers: int) -> float:
    """FLOPs of L tokens of width D: in each block 24 L D^2 for projections and MLP, 4 L^2 D for attention."""
    return layers * (24 * tokens * width**2 + 4 * tokens**2 * width)


def image_flops(images: int) -> float:
    """FLOPs of ViT-B/16 at 224 x 224, with the patch convolution."""
    return images * (tower_flops(197, 768, 12) + 2 * 196 * 3 * 16**2 * 768)


def text_flops(texts: int, tokens: int = 77) -> float:
    return texts * tower_flops(tokens, 512, 12)


@cache
def best_rate(rows: int, width: int, dtype: torch.dtype, packed: bool) -> float:
    """FLOP/s of the fastest of a block's matrix products, (rows, width) by (width, 3 or 4 times width) and back.

    Time is processor time over the number of threads, which other work on the machine does not stretch. `packed`: the
    weight is in oneDNN's preferred order, as a server may prepare it once.
    """
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    return max(_rate(rows, k, n, dtype, packed) for k, n in shapes)


def _rate(rows: int, k: int, n: int, dtype: torch.dtype, packed: bool) -> float:
    x, weight, bias = torch.randn(rows, k, dtype=dtype), torch.randn(n, k, dtype=dtype), torch.randn(n, dtype=dtype)
    if packed:
        onednn = torch.ops.mkldnn
        reordered = onednn._reorder_linear_weight(weight, rows)

        def product() -> torch.Tensor:
            return onednn._linear_pointwise(x, reordered, bias, "none", [], "")
    else:

        def product() -> torch.Tensor:
            return F.linear(x, weight, bias)

    product()
    taken: list[float] = []
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end or len(taken) < 5:
        start = time.process_time()
        product()
        taken.append((time.process_time() - start) / torch.get_num_threads())
    return 2 * rows * k * n / min(taken)


def can_pack() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def seconds(flops: float, rows: int, width: int, dtype: torch.dtype) -> dict[str, float]:
    """Seconds that `flops` take at the best rate, with plain and, if torch can, with prepacked weights."""
    kinds = {"plain": False} | ({"prepacked": True} if can_pack() else {})
    return {kind: flops / best_rate(rows, width, dtype, packed) for kind, packed in kinds.items()}
