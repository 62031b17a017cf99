"""The training objectives, on features of unit length: sums over what this process holds, to be divided by a count."""

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
    """What the objectives know of P rows beside their features; a row is one text of one sample, mostly its only."""

    text_id: Tensor  # (P,) int64, equal where the texts are
    other_id: Tensor  # (P,) int64, that of the sample's other text, or of this one if it has no other
    picture: Tensor  # (P,) int64, equal where the samples are of one picture
    view_group: Tensor  # (P,) int64, equal where the samples were drawn together: a batch may hold a picture twice
    whole: Tensor  # (P,) bool: the text is of the whole picture
    weight: Tensor  # (P,) float32, the row's share of its sample's loss

    def map(self, change: Callable[[Tensor], Tensor]) -> Labels:
        return Labels(*(change(getattr(self, f.name)) for f in fields(Labels)))

    @staticmethod
    def join(parts: Sequence[Labels]) -> Labels:
        return Labels(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Labels)))


def contrastive_sum(
    image: Tensor,
    text: Tensor,
    labels: Labels,
    all_image: Tensor,
    all_text: Tensor,
    all_labels: Labels,
    first: int,
    scale: Tensor,
) -> Tensor:
    """InfoNCE in both directions (arXiv 2103.00020, figure 3), each row against those of all processes.

    Not negatives of a row: its text, and its sample's other text, wherever they stand; and rows of the same picture
    where one of the two is the whole of it, since that caption may name the region. A negative counts by its weight,
    so that a text of next to no weight is next to nothing to the others too.

    Args:
        image: (P, D) image features, of unit length.
        text: (P, D) features of their texts, of unit length.
        labels: of these P rows.
        all_image: (A, D) those of all processes; `image` stands there from `first` on.
        all_text: (A, D) likewise.
        all_labels: labels of all A rows.
        first: where this process's rows begin.
        scale: () factor on the cosines, the inverse temperature.

    Returns:
        () sum over the P rows of weight times the mean of the two cross-entropies.
    """
    own = torch.arange(first, first + len(image), device=image.device)
    rows = torch.arange(len(image), device=image.device)
    excluded, texts_hold = _may_name(labels, all_labels), _texts_hold(labels, all_labels)
    images_hold = (labels.text_id[:, None] == all_labels.text_id) | (labels.text_id[:, None] == all_labels.other_id)
    counts = all_labels.weight.log().expand(len(image), -1).clone()
    total = image.new_zeros(())
    for logits, holds in ((scale * image @ all_text.T, texts_hold), (scale * text @ all_image.T, images_hold)):
        bias = counts.masked_fill(excluded | holds, -torch.inf)
        bias[rows, own] = 0
        total = total + (labels.weight * F.cross_entropy(logits + bias, own, reduction="none")).sum()
    return total / 2


def sigmoid_sum(
    image: Tensor,
    text: Tensor,
    labels: Labels,
    all_text: Tensor,
    all_labels: Labels,
    first: int,
    scale: Tensor,
    bias: Tensor,
) -> Tensor:
    """SigLIP's loss (arXiv 2303.15343, equation 1): each image with each text, a pair or not, for itself.

    -log sigmoid(z (scale cos + bias)), z being 1 for a row's own text and -1 for all others but those that are no
    negatives in `contrastive_sum` either. A pair counts by the weight of its row, a negative by both rows' weights.
    Each image's pairs are summed up, as in the paper, which divides by the number of images alone: with the batch grows
    the share of the negatives. Over all processes each pair of an image and a text counts once.

    Args:
        image: (P, D) image features, of unit length.
        text: (P, D) features of their texts, of unit length.
        labels: of these P rows.
        all_text: (A, D) text features of all processes; `text` stands there from `first` on.
        all_labels: labels of all A rows.
        first: where this process's rows begin.
        scale: () factor on the cosines.
        bias: () what is added to them then.

    Returns:
        () sum over the P rows.
    """
    own = torch.arange(first, first + len(image), device=image.device)
    logits = scale * image @ all_text.T + bias  # (P, A)
    pairs = scale * (image * text).sum(dim=1) + bias  # (P,)
    excluded = _may_name(labels, all_labels) | _texts_hold(labels, all_labels)
    excluded[torch.arange(len(image), device=image.device), own] = True
    negatives = F.logsigmoid(-logits).masked_fill(excluded, 0) @ all_labels.weight
    return -(labels.weight * (F.logsigmoid(pairs) + negatives)).sum()


def _may_name(labels: Labels, all_labels: Labels) -> Tensor:
    """(P, A) bool: rows of the same picture where one of the two is the whole of it."""
    return (labels.picture[:, None] == all_labels.picture) & (labels.whole[:, None] | all_labels.whole)


def _texts_hold(labels: Labels, all_labels: Labels) -> Tensor:
    """(P, A) bool: texts that hold for an image for sure: its row's text, and its sample's other text."""
    return (all_labels.text_id == labels.text_id[:, None]) | (all_labels.text_id == labels.other_id[:, None])


def same_image_pairs(text: Tensor, labels: Labels, mask: Tensor) -> Tensor:
    """(P, P) bool: two rows that are different regions of one picture beyond doubt.

    Their masks, (P, g) in [0, 1], hardly overlap, neither contains the other, their phrases differ in words and in
    meaning, and they are all that their samples show.
    """
    area = mask.sum(dim=1)
    both = mask @ mask.T  # (P, P)
    iou = both / (area[:, None] + area - both).clamp_min(1e-6)
    inside = both / torch.minimum(area[:, None], area).clamp_min(1e-6)
    alone = ~labels.whole & (labels.weight == 1)
    return (
        (labels.view_group[:, None] == labels.view_group)  # others may lie in another process, so none counts across
        & alone[:, None]
        & alone
        & (labels.text_id[:, None] != labels.text_id)
        & (iou <= SAME_IMAGE_IOU)
        & (inside < SAME_IMAGE_INSIDE)
        & (text @ text.T < SAME_IMAGE_COSINE)
    )


def same_image_sum(image: Tensor, text: Tensor, pairs: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each region over the texts, and of each text over the *masks*, of its picture's regions.

    The second half cannot be solved without alpha: the pixels are the same.

    Args:
        image: (P, D) image features, of unit length.
        text: (P, D) text features, of unit length.
        pairs: (P, P) bool, what `same_image_pairs` returns.
        scale: () inverse temperature.

    Returns:
        () sum of the mean of the two over the rows with at least one pair.
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


def hard_negatives_sum(image: Tensor, texts: Tensor, own: Tensor, hard_negatives: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each sample over the names of all sets of its picture's regions.

    Args:
        image: (B, D) image features, of unit length.
        texts: (U, D) text features, of unit length.
        own: (B,) int64, which text is the sample's.
        hard_negatives: (B, U) bool, which texts it is told from, its own among them; or none.
        scale: () inverse temperature.

    Returns:
        () sum over the samples that have hard negatives.
    """
    rows = hard_negatives.any(dim=1)
    if not rows.any():
        return image.sum() * 0
    logits = (scale * image[rows] @ texts.T).masked_fill(~hard_negatives[rows], -torch.inf)
    return F.cross_entropy(logits, own[rows], reduction="sum")


def distillation_sum(features: Tensor, target: Tensor) -> Tensor:
    """() sum of 1 - cosine of (B, D) features and targets, both of unit length."""
    return len(features) - (features * target).sum()


def token_drift_sum(tokens: Tensor, target: Tensor) -> Tensor:
    """() sum over B of |Z - Z0|^2 / |Z0|^2, for (B, N, D) tokens and targets."""
    return ((tokens - target).square().sum(dim=(1, 2)) / target.square().sum(dim=(1, 2))).sum()
