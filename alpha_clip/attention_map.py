"""Show where in a picture the class token looks."""

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
    """Return the class token's attention to each pixel of an upright picture, (H, W) float32, scaled to a maximum of 1.

    It is the mean over the heads of block `layer` of the image tower, interpolated from patches to pixels.

    Raises:
        IndexError: there is no such block.
        ValueError, TypeError: mask and picture do not fit, as in `Preprocess`.
    """
    rgb, alpha = preprocess(picture, mask, geometry="pad")
    looks = model.visual.attention(rgb, alpha, layer=layer)[0, :, 0, 1:].mean(0)  # (N,)
    return _over_picture(looks.float().cpu(), picture)


def painted(picture: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """Return the picture in grey with the heat map, (H, W) in [0, 1], over it in red to yellow."""
    grey = np.asarray(picture.convert("L").convert("RGB"), np.float32)
    colour = np.stack([np.full_like(heat, 255), 255 * heat, np.zeros_like(heat)], axis=-1)
    strength = 0.8 * heat[..., None] ** 0.7
    return Image.fromarray(((1 - strength) * grey + strength * colour).round().astype(np.uint8))


def _over_picture(looks: Tensor, picture: Image.Image) -> NDArray[np.float32]:
    """Interpolate attention to the N patches of a padded square to the picture's pixels, (H, W) in [0, 1]."""
    side, grid = max(picture.size), round(len(looks) ** 0.5)
    square = resize(looks.reshape(1, grid, grid), [side, side], InterpolationMode.BICUBIC)
    heat = center_crop(square, [picture.height, picture.width])[0].clamp_min(0)
    return np.asarray(heat / heat.max().clamp_min(1e-12))
