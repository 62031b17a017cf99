"""Where does the class token look in plain CLIP, at alpha = 1, and under a mask?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...inputs import FOREGROUND, denormalised
from ...model import CLIP, VisionTransformer
from ...towers import tower_of
from ...zero_shot import TEMPLATES
from ..samples import Sample
from ..subjects import Subject
from ..tables import Cell, Curves, Finding, Table
from ..ways import Way
from .seeing import CHUNK, clip_of, does_not_apply, obstacle

NAME, TITLE = "attention", "Where does the class token look?"

EIGHTH, QUARTER = 1 / 8, 1 / 4  # of the side, by which masks are moved
SQUASHED = 0.7  # share of the width or height that is left


@torch.no_grad()
def class_attention(visual: VisionTransformer, rgb: Tensor, alpha: Tensor | None = None) -> Tensor:
    """The class token's attention to patches, normalised to sum to 1: (layers, B, heads, N) on the CPU.

    These are the weights ``[:, :, 0, 1:]`` of `VisionTransformer.attention`, for all layers in one pass.
    """
    inputs: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0])  # (1 + N, B, width)

    blocks = visual.transformer.blocks
    handles = [block.attn.register_forward_pre_hook(keep) for block in blocks]
    try:
        visual(rgb, alpha)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for block, x in zip(blocks, inputs, strict=True):
        weights = block.attn(x[:1], x, x, need_weights=True, average_attn_weights=False)[1]  # (B, heads, 1, 1 + N)
        patches = weights[:, :, 0, 1:].float()
        found.append((patches / patches.sum(dim=-1, keepdim=True)).cpu())
    return torch.stack(found)


def covered(alpha: Tensor, grid: int) -> Tensor:
    """(K, N) in [0, 1]: how much of each patch the masks (K, 1, n, n) cover, as `Preprocess` gives them."""
    mask = denormalised(alpha.float().cpu()).clamp(0, 1)
    return F.adaptive_avg_pool2d(mask, grid).flatten(1)


def mass(attention: Tensor, cover: Tensor) -> Tensor:
    """(layers, K, heads): the share of `class_attention` (layers, K, heads, N) inside masks (K, N)."""
    return (attention * cover[:, None]).sum(dim=-1)


# --- how a mask may have been changed by mistake ---


def _moved(down: float, right: float) -> Callable[[Tensor], Tensor]:
    """Move a mask by shares of the side, filling with background."""

    def move(alpha: Tensor) -> Tensor:
        n = alpha.shape[-1]
        y, x = round(down * n), round(right * n)
        wide = F.pad(alpha, (n, n, n, n), value=-FOREGROUND)
        return wide[..., n - y : 2 * n - y, n - x : 2 * n - x]

    return move


def _squashed(height: float, width: float) -> Callable[[Tensor], Tensor]:
    """Squash a mask towards the centre, to shares of its height and width, filling with background."""

    def squash(alpha: Tensor) -> Tensor:
        n = alpha.shape[-1]
        h, w = round(height * n), round(width * n)
        small = F.interpolate(alpha, (h, w), mode="bilinear", antialias=True)
        top, left = (n - h) // 2, (n - w) // 2
        return F.pad(small, (left, n - w - left, top, n - h - top), value=-FOREGROUND)

    return squash


CHANGES: Mapping[str, Callable[[Tensor], Tensor]] = {  # applied to masks (K, 1, n, n), as `Preprocess` gives them
    "as it is": lambda alpha: alpha,
    "mirrored left to right": lambda alpha: alpha.flip(-1),
    "mirrored top to bottom": lambda alpha: alpha.flip(-2),
    "turned by 180 degrees": lambda alpha: alpha.flip(-1, -2),
    "with rows and columns exchanged": lambda alpha: alpha.transpose(-1, -2),
    "squashed to 70% of its width": _squashed(1, SQUASHED),
    "squashed to 70% of its height": _squashed(SQUASHED, 1),
} | {
    f"moved {way} by {name} of the side": _moved(part * down, part * right)
    for part, name in ((EIGHTH, "an eighth"), (QUARTER, "a quarter"))
    for way, down, right in (("left", 0, -1), ("right", 0, 1), ("up", -1, 0), ("down", 1, 0))
}


@dataclass(frozen=True)
class Attention:
    """The class token's attention inside K masks."""

    base: Tensor | None  # (layers, K, heads): `mass` in each mask, by the plain CLIP
    whole: Tensor  # the same at alpha = 1
    mask: Tensor  # the same under the mask
    area: Tensor  # (K,) the masks' shares of the patches
    follows: Mapping[str, Tensor]  # (K,) for each of `CHANGES`, see `follow`


def measure(subject: Subject, samples: Sequence[Sample]) -> Attention:
    """Measure attention inside every region of the samples."""
    parts = [_of_sample(subject, sample) for sample in samples]

    def joined(values: Sequence[Tensor], dim: int) -> Tensor:
        return torch.cat(list(values), dim=dim)

    return Attention(
        None if parts[0].base is None else joined([p.base for p in parts if p.base is not None], 1),
        joined([p.whole for p in parts], 1),
        joined([p.mask for p in parts], 1),
        joined([p.area for p in parts], 0),
        {change: joined([p.follows[change] for p in parts], 0) for change in CHANGES},
    )


def _of_sample(subject: Subject, sample: Sample) -> Attention:
    tower, visual = tower_of(subject.model), clip_of(subject).visual
    rgb, alpha = tower.preprocess(sample.image, sample.masks, geometry="pad")
    cover = covered(alpha, tower.grid)
    whole = class_attention(visual, rgb[None])
    mask = torch.cat([class_attention(visual, rgb[None], part) for part in alpha.split(CHUNK)], dim=1)
    base = subject.base.model if subject.base is not None else None
    of_base = None
    if isinstance(base, CLIP) and tower_of(base).grid == tower.grid:
        of_base = mass(class_attention(base.visual, rgb[None]), cover)
    gain = (mask - whole).mean(dim=(0, 2))  # (K, N)
    follows = {name: follow(gain, covered(change(alpha), tower.grid)) for name, change in CHANGES.items()}
    return Attention(of_base, mass(whole, cover), mass(mask, cover), cover.mean(dim=1), follows)


def follow(gain: Tensor, cover: Tensor) -> Tensor:
    """(K,) correlations, over patches, of the attention a mask adds, (K, N), with how much it covers, (K, N).

    A correlation is 0 if either is constant.
    """
    gain, cover = (x - x.mean(dim=1, keepdim=True) for x in (gain.double(), cover.double()))
    size = gain.norm(dim=1) * cover.norm(dim=1)
    return torch.where(size > 1e-12, (gain * cover).sum(dim=1) / size.clamp_min(1e-12), 0.0)


def probe(
    subject: Subject,
    samples: Sequence[Sample],
    templates: Sequence[str] = TEMPLATES,
    ways: Sequence[Way] | None = None,
) -> Finding:
    """Report the class token's attention inside the masks, by layer and head."""
    if (why := obstacle(subject)) is not None:
        return does_not_apply(NAME, TITLE, why)
    found = measure(subject, samples)
    seen = {"plain CLIP": found.base, "alpha = 1": found.whole, "mask": found.mask}
    masses = {name: x.mean(dim=(1, 2)).tolist() for name, x in seen.items() if x is not None}  # by layer
    area = float(found.area.mean())
    follows = {change: float(values.mean()) for change, values in found.follows.items()}
    best = max(follows, key=lambda change: follows[change])
    last = ", ".join(f"{x[-1]:.1%} ({name})" for name, x in masses.items())
    verdict = (
        f"Masks cover {area:.1%} of the patches. In the last layer they get {last} of the class token's attention to "
        f"patches. What a mask adds follows the mask {best} best: correlation {follows[best]:.2f}, "
        f"{follows['as it is']:.2f} with the mask as it is."
    )
    lines = {name: list(enumerate(x, 1)) for name, x in masses.items()}
    lines["area of the mask"] = [(layer, area) for layer in range(1, len(found.mask) + 1)]
    curves = [Curves(NAME, "layer", "attention inside the mask", lines)]
    return Finding(NAME, TITLE, verdict, _tables(found, masses), curves)


def _tables(found: Attention, masses: Mapping[str, Sequence[float]]) -> list[Table]:
    relative = (found.mask / found.area[:, None]).mean(dim=(1, 2)).tolist()
    by_layer: list[list[Cell]] = [
        [str(i + 1), *(f"{x[i]:.1%}" for x in masses.values()), f"{relative[i]:.2f}"] for i in range(len(relative))
    ]
    by_head: list[list[Cell]] = [
        [str(i), *(f"{x:.1%}" for x in layer)] for i, layer in enumerate(found.mask.mean(dim=1).tolist(), 1)
    ]
    heads = [f"head {i}" for i in range(1, found.mask.shape[2] + 1)]
    return [
        Table(
            "Attention inside the mask, mean over heads",
            ["layer", *masses, "under the mask, as a multiple of its area"],
            by_layer,
            "Shares of the class token's attention to patches; what it gives to itself does not count.",
        ),
        Table("Attention inside the mask, under the mask, by head", ["layer", *heads], by_head),
    ]
