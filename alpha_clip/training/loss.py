"""The training objectives on features of unit length: sums over the rows of this process, which the caller divides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

# Two regions of one picture may be the same thing if
SAME_IMAGE_IOU = 0.1  # the IoU of their masks is above this,
SAME_IMAGE_INSIDE = 0.8  # this share of one mask or more lies within the other,
SAME_IMAGE_COSINE = 0.9  # or the cosine of their phrases is at least this


@dataclass(frozen=True)
class Labels:
    """What is known about P rows besides their features. A row is one text of a sample; few samples have two."""

    text_id: Tensor  # (P,) int64, equal for equal texts
    other_id: Tensor  # (P,) int64, id of the sample's other text, or this text's own if there is none
    picture: Tensor  # (P,) int64, equal for samples of one picture
    view_group: Tensor  # (P,) int64, equal for samples drawn together: a batch may hold a picture twice
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

    A row's own text and its sample's other text are no negatives, in whichever rows they occur. Nor are rows of the
    same picture if one of the two shows all of it, since its caption may name the region. A negative counts by its
    weight, so that a text of hardly any weight hardly matters to the others.

    Args:
        image: (P, D) image features, of unit length.
        text: (P, D) features of their texts, of unit length.
        labels: what is known of these P rows.
        all_image: (A, D) image features of all processes; rows `first` on are `image`.
        all_text: (A, D) text features of all processes, in the same order.
        all_labels: labels of all A rows.
        first: index, among the A, of this process's first row.
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
    """SigLIP's loss (arXiv 2303.15343, equation 1): is this image and this text a pair, asked of all of them.

    A term is -log sigmoid(z (scale cos + bias)), with z = 1 for a row's own text and -1 for its negatives, which are
    those of `contrastive_sum`. A pair counts by the weight of its row, a negative by the weights of both rows. The
    terms of an image are summed, and the paper divides by the number of images only: the larger the batch, the more
    the negatives weigh. Over all processes each pair of image and text counts once.

    Args:
        image: (P, D) image features, of unit length.
        text: (P, D) features of their texts, of unit length.
        labels: what is known of these P rows.
        all_text: (A, D) text features of all processes; rows `first` on are `text`.
        all_labels: labels of all A rows.
        first: index, among the A, of this process's first row.
        scale: () factor on the cosines.
        bias: () added to the scaled cosines.

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
    """(P, A) bool: two rows of the same picture, one of which shows all of it."""
    return (labels.picture[:, None] == all_labels.picture) & (labels.whole[:, None] | all_labels.whole)


def _texts_hold(labels: Labels, all_labels: Labels) -> Tensor:
    """(P, A) bool: texts that certainly describe an image: its row's text, and its sample's other text."""
    return (all_labels.text_id == labels.text_id[:, None]) | (all_labels.text_id == labels.other_id[:, None])


def same_image_pairs(text: Tensor, labels: Labels, mask: Tensor) -> Tensor:
    """(P, P) bool: two rows that are certainly different regions of one picture.

    Their masks, (P, g) in [0, 1], hardly overlap, neither contains the other, their phrases differ in words and
    meaning, and neither sample shows anything else.
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
        pairs: (P, P) bool, from `same_image_pairs`.
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
