"""Pictures that strangers send: decoded within limits, or refused in plain words."""

from __future__ import annotations

import os
import warnings

from PIL import Image

from ..search.indexing import UNREADABLE
from ..transforms import upright

SIDE = 1024  # pixels: more than any CLIP sees, and a session's memory stays small
SMALLEST = 32  # pixels a side; below, there is nothing to point at

# What cameras and browsers write. Pillow reads more, in part by other programs (EPS by Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def limit_pixels(megapixels: float) -> None:
    """Let Pillow refuse larger pictures in all of this process, whoever opens them: gradio reads strokes by itself."""
    Image.MAX_IMAGE_PIXELS = round(megapixels * 1e6 / 2)  # it warns above this, and raises above twice as many
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Refused(ValueError):
    """A picture that is not taken; the text is for whoever sent it."""


def decode(path: str | os.PathLike[str], megapixels: float) -> Image.Image:
    """The picture in a file, upright, in RGB, no side above `SIDE`.

    The size is read off the header: what has more than so many million pixels is refused before it fills the memory.

    Raises:
        Refused: the file holds no picture that can be read, or one too large or too small.
    """
    try:
        with Image.open(path, formats=FORMATS) as stored:
            _check(stored.size, megapixels)
            stored.draft(None, (SIDE, SIDE))  # a JPEG is decoded no larger than needed
            picture = upright(stored)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(_too_large(megapixels)) from error
    except Refused:
        raise
    except UNREADABLE as error:
        raise Refused(
            "This file cannot be read as a picture. It may be damaged, or of another kind: JPEG, PNG, WebP, GIF and "
            "BMP work."
        ) from error
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    _check(picture.size, megapixels)  # a strip of paper is nothing but an edge by now
    return picture


def _check(size: tuple[int, int], megapixels: float) -> None:
    width, height = size
    if width * height > megapixels * 1e6:
        raise Refused(f"{_too_large(megapixels)} This one is {width} x {height} pixels.")
    if min(size) < SMALLEST:
        raise Refused(f"This picture is too small to point at: {width} x {height} pixels, at least {SMALLEST} a side.")


def _too_large(megapixels: float) -> str:
    return f"This picture is too large: up to {megapixels:g} million pixels are taken. Make it smaller and try again."
