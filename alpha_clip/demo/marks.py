"""Turn marks on a picture (strokes, a box, a point) into masks (H, W); None means that nothing is marked.

Places are in percent of the picture's width and height, so that they hold for a new picture, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..search.drawing import tinted
from ..transforms import box_mask

Mask = NDArray[np.bool_]

COLOUR = "#d6204e"
_LEAST = 12  # pixels: a smaller mark is a slip of the hand


def strokes(layers: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> Mask | None:
    """The mask of all that is painted in layers (H, W, 4) on a picture of `size` (width, height).

    Layers of another size are left out: they belong to the previous picture, whose last stroke came late.
    """
    mask = np.zeros(size[::-1], bool)
    for layer in layers:
        if layer.shape[:2] == mask.shape:
            mask |= layer[..., 3] > 0
    return worth_it(mask)


def box(corners: Sequence[float], size: tuple[int, int]) -> Mask | None:
    """The mask of the box between two opposite corners (x0, y0, x1, y1): pixels of which it covers at least half."""
    (x0, x1), (y0, y1) = sorted(corners[0::2]), sorted(corners[1::2])
    if x0 == x1 or y0 == y1:
        return None
    scale = [side / 100 for side in size * 2]
    in_pixels = [edge * by for edge, by in zip((x0, y0, x1, y1), scale, strict=True)]
    return worth_it(box_mask(in_pixels, size[::-1]) >= 0.5)


def worth_it(mask: Mask) -> Mask | None:
    """The mask, or None if it is too small to be meant."""
    return mask if mask.sum() >= _LEAST else None


def percent(at: Sequence[float], size: tuple[int, int]) -> tuple[float, float]:
    """The place (x, y) of a pixel in percent, to a tenth."""
    return round(100 * (at[0] + 0.5) / size[0], 1), round(100 * (at[1] + 0.5) / size[1], 1)


def pixel(at: Sequence[float], size: tuple[int, int]) -> tuple[float, float]:
    """The pixel (x, y) at a place in percent, kept inside the picture."""
    return min(at[0] / 100 * size[0], size[0] - 0.5), min(at[1] / 100 * size[1], size[1] - 0.5)


def shown(picture: Image.Image, mask: Mask | None, dot: Sequence[float] | None = None) -> Image.Image:
    """The picture with the mask, if any, laid over it, and a point at `dot`, if any."""
    drawn = picture.copy() if mask is None else tinted(picture, mask.astype(np.float32), COLOUR)
    if dot is not None:
        x, y = pixel(dot, picture.size)
        r = max(5, min(picture.size) / 60)
        ImageDraw.Draw(drawn).ellipse((x - r, y - r, x + r, y + r), COLOUR, "white", width=2)
    return drawn
