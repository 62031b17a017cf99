"""The training objectives, on features of unit length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(image: Tensor, text: Tensor, text_of: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE in both directions, where samples with equal texts are not each other's negatives.

    Args:
        image: (B, D) image features, of unit length.
        text: (U, D) features of the U different texts, of unit length.
        text_of: (B,) which text belongs to which image.
        scale: () factor on the cosines, the inverse temperature.

    Returns:
        () mean of the image-to-text and the text-to-image cross-entropy (arXiv 2103.00020, figure 3).
    """
    logits = scale * image @ text.T  # (B, U)
    # Rows: a sample's text against all images, but for the other images of the same text.
    per_text = logits[:, text_of].T  # (B, B)
    others = (text_of[:, None] == text_of) & ~torch.eye(len(text_of), dtype=torch.bool, device=text_of.device)
    per_text = per_text.masked_fill(others, -torch.inf)
    own = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, text_of) + F.cross_entropy(per_text, own)) / 2


def distillation_loss(features: Tensor, target: Tensor) -> Tensor:
    """() mean of 1 - cosine of (B, D) features and targets, both of unit length."""
    return 1 - (features * target).sum(dim=-1).mean()
