"""Where the class token looks, over the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from .model import CLIP
from .transforms import Preprocess


@torch.no_grad()
def attention_map(
    model: CLIP, preprocess: Preprocess, picture: Image.Image, mask: Any, layer: int = -1
) -> NDArray[np.float32]:
    """Attention of the class token to each pixel of an upright picture, (H, W) float32, the most being 1.

    The mean over the heads of block `layer` of the image tower, whose patches are scaled to pixels.

    Raises:
        IndexError: there is no such block. What `Preprocess` raises if mask and picture do not fit.
    """
    rgb, alpha = preprocess(picture, mask, geometry="pad")
    looks = model.visual.attention(rgb, alpha, layer=layer)[0, :, 0, 1:].mean(0)  # (N,)
    return _over_picture(looks.float().cpu(), picture)


def painted(picture: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """The picture in grey, and what is looked at in red to yellow; ``heat`` is (H, W) in [0, 1]."""
    grey = np.asarray(picture.convert("L").convert("RGB"), np.float32)
    colour = np.stack([np.full_like(heat, 255), 255 * heat, np.zeros_like(heat)], axis=-1)
    strength = 0.8 * heat[..., None] ** 0.7
    return Image.fromarray(((1 - strength) * grey + strength * colour).round().astype(np.uint8))


def _over_picture(looks: Tensor, picture: Image.Image) -> NDArray[np.float32]:
    """(N,) of a padded square's patches to (H, W) in [0, 1]."""
    side, grid = max(picture.size), round(len(looks) ** 0.5)
    square = resize(looks.reshape(1, grid, grid), [side, side], InterpolationMode.BICUBIC)
    heat = center_crop(square, [picture.height, picture.width])[0].clamp_min(0)
    return np.asarray(heat / heat.max().clamp_min(1e-12))
