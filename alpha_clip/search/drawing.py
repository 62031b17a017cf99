"""Draw masks and outlines on pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

INK, PAPER, GREY = "#1f2430", "#ffffff", "#8a90a0"
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008f9c", "#c71585", "#7a6a00", "#9a6324", "#000075")


def outline(mask: Image.Image, width: int) -> Image.Image:
    """A line, `width` pixels wide, around the white part of a mask of mode L; inside it at the edge of the picture."""
    inner = Image.new("L", (mask.width + 2, mask.height + 2))  # a frame of black, so that the edge counts as outside
    inner.paste(mask.point(lambda value: 255 * (value > 127)), (1, 1))
    grown = inner.filter(ImageFilter.MaxFilter(2 * width + 1))
    shrunk = inner.filter(ImageFilter.MinFilter(3))
    return ImageChops.subtract(grown, shrunk).crop((1, 1, mask.width + 1, mask.height + 1))


def tinted(picture: Image.Image, mask: NDArray[np.float32], colour: str, strength: float = 0.35) -> Image.Image:
    """Tint the part of a picture under a mask (H, W) in [0, 1], and draw its outline."""
    flat = Image.new("RGB", picture.size, colour)
    soft = Image.fromarray((255 * mask).round().astype(np.uint8))
    picture = Image.composite(flat, picture, soft.point(lambda value: round(strength * value)))
    return Image.composite(flat, picture, outline(soft, max(1, round(min(picture.size) / 250))))


def tag(draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, colour: str, size: int = 15) -> None:
    """Draw a small label centred at a point, but inside the picture."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    width, height = right - left + 8, bottom - top + 8
    x = min(max(0, xy[0] - width / 2), draw.im.size[0] - width)
    y = min(max(0, xy[1] - height / 2), draw.im.size[1] - height)
    draw.rounded_rectangle((x, y, x + width, y + height), 4, colour)
    draw.text((x + 4 - left, y + 4 - top), text, PAPER, font)
