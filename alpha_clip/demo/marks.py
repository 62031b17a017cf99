"""Marks on a picture: what is painted, a box, a point, as masks (H, W); None is "nothing marked".

Places are in percent of the picture's width and height, which a new picture does not change.
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
_LEAST = 12  # pixels: less is a slip of the hand


def strokes(layers: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> Mask | None:
    """What is painted on in layers (H, W, 4) of a picture of `size` (width, height).

    Layers of another size are of the picture before, whose last stroke came late.
    """
    mask = np.zeros(size[::-1], bool)
    for layer in layers:
        if layer.shape[:2] == mask.shape:
            mask |= layer[..., 3] > 0
    return worth_it(mask)


def box(corners: Sequence[float], size: tuple[int, int]) -> Mask | None:
    """The box between two corners (x0, y0, x1, y1), whichever they are; a pixel counts if half of it is covered."""
    (x0, x1), (y0, y1) = sorted(corners[0::2]), sorted(corners[1::2])
    if x0 == x1 or y0 == y1:
        return None
    scale = [side / 100 for side in size * 2]
    in_pixels = [edge * by for edge, by in zip((x0, y0, x1, y1), scale, strict=True)]
    return worth_it(box_mask(in_pixels, size[::-1]) >= 0.5)


def worth_it(mask: Mask) -> Mask | None:
    return mask if mask.sum() >= _LEAST else None


def percent(at: Sequence[float], size: tuple[int, int]) -> tuple[float, float]:
    """A pixel's place (x, y), to a tenth."""
    return round(100 * (at[0] + 0.5) / size[0], 1), round(100 * (at[1] + 0.5) / size[1], 1)


def pixel(at: Sequence[float], size: tuple[int, int]) -> tuple[float, float]:
    """The way back, kept inside the picture."""
    return min(at[0] / 100 * size[0], size[0] - 0.5), min(at[1] / 100 * size[1], size[1] - 0.5)


def shown(picture: Image.Image, mask: Mask | None, dot: Sequence[float] | None = None) -> Image.Image:
    """The picture with the mark laid over it, and a point at `dot`, if there are such."""
    drawn = picture.copy() if mask is None else tinted(picture, mask.astype(np.float32), COLOUR)
    if dot is not None:
        x, y = pixel(dot, picture.size)
        r = max(5, min(picture.size) / 60)
        ImageDraw.Draw(drawn).ellipse((x - r, y - r, x + r, y + r), COLOUR, "white", width=2)
    return drawn
