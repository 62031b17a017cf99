"""Draw the hits of a search into one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..transforms import upright
from .drawing import GREY, INK, PAPER, outline
from .index import Hit

SIDE, MARGIN, COLUMNS = 200, 12, 5  # pixels, pixels, thumbnails in a row
RED = "#e6194b"


def sheet(hits: Sequence[Hit], title: str) -> Image.Image:
    """A contact sheet: the picture of each hit with its region outlined, and rank, score and name below."""
    columns = min(COLUMNS, len(hits))
    rows = -(-len(hits) // columns)
    size = (MARGIN + columns * (SIDE + MARGIN), 48 + rows * (SIDE + 36))
    canvas = Image.new("RGB", size, PAPER)
    draw, small = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    draw.text((MARGIN, 12), title, INK, ImageFont.load_default(20))
    for i, hit in enumerate(hits):
        x, y = MARGIN + i % columns * (SIDE + MARGIN), 48 + i // columns * (SIDE + 36)
        canvas.paste(ImageOps.pad(thumbnail(hit), (SIDE, SIDE), color=PAPER), (x, y))
        draw.text((x, y + SIDE + 4), f"{i + 1}  {hit.score:.2f}", INK, small)
        name = hit.paths[0].replace("\\", "/").rsplit("/", 1)[-1]
        draw.text((x + SIDE, y + SIDE + 4), name if len(name) < 20 else f"...{name[-16:]}", GREY, small, anchor="ra")
    return canvas


def thumbnail(hit: Hit) -> Image.Image:
    """The picture of a hit, pale outside the outlined region; plain grey if no copy can be read any more."""
    for path in hit.paths:
        try:
            picture = upright(path)
            break
        except (OSError, ValueError):
            continue
    else:
        return Image.new("RGB", (SIDE, SIDE), GREY)
    picture = ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.LANCZOS)
    mask = Image.fromarray((255 * hit.outline).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    pale = Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.35)
    shown = Image.composite(picture, pale, mask)
    shown.paste(Image.new("RGB", shown.size, RED), mask=outline(mask, 2))
    return shown
