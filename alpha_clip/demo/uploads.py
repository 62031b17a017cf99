"""Decode pictures that strangers send, within limits, or refuse them in plain words."""

from __future__ import annotations

import os
import warnings

from PIL import Image

from ..search.indexing import UNREADABLE
from ..transforms import upright

SIDE = 1024  # pixels of the longest side: more than any CLIP sees, yet a session's memory stays small
SMALLEST = 32  # pixels a side; below, there is nothing to point at

# The formats that cameras and browsers write. Pillow reads more, some by other programs (EPS by Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def limit_pixels(megapixels: float) -> None:
    """Let Pillow refuse larger pictures in this whole process, because gradio reads strokes by itself."""
    Image.MAX_IMAGE_PIXELS = round(megapixels * 1e6 / 2)  # it warns above this, and raises above twice as many
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Refused(ValueError):
    """A picture was refused; the text tells the visitor why."""


def decode(path: str | os.PathLike[str], megapixels: float) -> Image.Image:
    """Decode the picture in a file: upright, in RGB, no side above `SIDE`.

    The size is read from the header, so that a picture above `megapixels` is refused before it fills the memory.

    Raises:
        Refused: the file holds no picture that can be read, or one that is too large or too small.
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
    _check(picture.size, megapixels)  # a long strip may have lost its width
    return picture


def _check(size: tuple[int, int], megapixels: float) -> None:
    width, height = size
    if width * height > megapixels * 1e6:
        raise Refused(f"{_too_large(megapixels)} This one is {width} x {height} pixels.")
    if min(size) < SMALLEST:
        raise Refused(f"This picture is too small to point at: {width} x {height} pixels, at least {SMALLEST} a side.")


def _too_large(megapixels: float) -> str:
    return f"This picture is too large: up to {megapixels:g} million pixels are taken. Make it smaller and try again."
