"""The training objectives, on features of unit length: sums over this process's samples, to be divided by a count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

SAME_IMAGE_IOU = 0.1  # above it, two masks of one picture may mean the same thing
SAME_IMAGE_INSIDE = 0.8  # as when more of one lies within the other than this
SAME_IMAGE_COSINE = 0.9  # ... and so do two phrases whose features are closer


@dataclass(frozen=True)
class Labels:
    """What the objectives know of B samples beside their features."""

    text_id: Tensor  # (B,) int64, equal where the texts are
    picture: Tensor  # (B,) int64, equal where the samples are of one picture
    whole: Tensor  # (B,) bool
    mask: Tensor  # (B, g) in [0, 1]: the masks, made small and flat

    def map(self, change: Callable[[Tensor], Tensor]) -> Labels:
        return Labels(change(self.text_id), change(self.picture), change(self.whole), change(self.mask))

    @staticmethod
    def join(parts: Sequence[Labels]) -> Labels:
        return Labels(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Labels)))


def contrastive_sum(
    image: Tensor,
    text: Tensor,
    labels: Labels,
    all_image: Tensor,
    all_text: Tensor,
    every: Labels,
    first: int,
    scale: Tensor,
) -> Tensor:
    """InfoNCE in both directions (arXiv 2103.00020, figure 3), each sample against those of all processes.

    Not each other's negatives: samples with equal texts, and samples of one picture of which one is the whole of it,
    since its caption may name the region.

    Args:
        image: (B, D) image features, of unit length.
        text: (B, D) features of their texts, of unit length.
        labels: of these B samples.
        all_image: (A, D) those of all processes; `image` stands there from `first` on.
        all_text: (A, D) likewise.
        every: labels of all A samples.
        first: where this process's samples begin.
        scale: () factor on the cosines, the inverse temperature.

    Returns:
        () sum over the B samples of the mean of their two cross-entropies.
    """
    own = torch.arange(first, first + len(image), device=image.device)
    same_text = labels.text_id[:, None] == every.text_id
    same_picture = labels.picture[:, None] == every.picture
    excluded = same_text | (same_picture & (labels.whole[:, None] | every.whole))
    excluded[torch.arange(len(own)), own] = False
    to_texts = (scale * image @ all_text.T).masked_fill(excluded, -torch.inf)  # (B, A)
    to_images = (scale * text @ all_image.T).masked_fill(excluded, -torch.inf)
    return (F.cross_entropy(to_texts, own, reduction="sum") + F.cross_entropy(to_images, own, reduction="sum")) / 2


def same_image_pairs(text: Tensor, labels: Labels) -> Tensor:
    """(B, B) bool: two samples that are different regions of one picture beyond doubt.

    Their masks hardly overlap, neither contains the other, and their phrases differ in words and in meaning.
    """
    area = labels.mask.sum(dim=1)
    both = labels.mask @ labels.mask.T  # (B, B)
    iou = both / (area[:, None] + area - both).clamp_min(1e-6)
    inside = both / torch.minimum(area[:, None], area).clamp_min(1e-6)
    return (
        (labels.picture[:, None] == labels.picture)
        & ~labels.whole[:, None]
        & ~labels.whole
        & (labels.text_id[:, None] != labels.text_id)
        & (iou <= SAME_IMAGE_IOU)
        & (inside < SAME_IMAGE_INSIDE)
        & (text @ text.T < SAME_IMAGE_COSINE)
    )


def same_image_sum(image: Tensor, text: Tensor, pairs: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each region over the texts, and of each text over the *masks*, of its picture's regions.

    The second half cannot be solved without alpha: the pixels are the same.

    Args:
        image: (B, D) image features, of unit length.
        text: (B, D) text features, of unit length.
        pairs: (B, B) bool, what `same_image_pairs` returns.
        scale: () inverse temperature.

    Returns:
        () sum of the mean of the two over the samples with at least one pair.
    """
    rows = pairs.any(dim=1)
    if not rows.any():
        return image.sum() * 0
    among = pairs | torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
    logits = scale * image @ text.T
    total = image.new_zeros(())
    for direction in (logits, logits.T):
        kept = direction.masked_fill(~among, -torch.inf)[rows]
        total = total + F.cross_entropy(kept, rows.nonzero()[:, 0], reduction="sum")
    return total / 2


def distillation_sum(features: Tensor, target: Tensor) -> Tensor:
    """() sum of 1 - cosine of (B, D) features and targets, both of unit length."""
    return len(features) - (features * target).sum()


def token_drift_sum(tokens: Tensor, target: Tensor) -> Tensor:
    """() sum over B of |Z - Z0|^2 / |Z0|^2, for (B, N, D) tokens and targets."""
    return ((tokens - target).square().sum(dim=(1, 2)) / target.square().sum(dim=(1, 2))).sum()
