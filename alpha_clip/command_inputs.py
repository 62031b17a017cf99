"""Read the pictures, masks and texts that the command `alpha-clip` is given."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from .search.indexing import KINDS, UNREADABLE
from .transforms import box_mask, read, upright

PART = 64  # masks in memory, and texts encoded, at a time
_LISTED = 8  # names or values that a message lists at most


@dataclass(frozen=True)
class Region:
    """A region with the name that the user gave it."""

    name: str
    mask: Callable[[Image.Image], Any]  # takes the picture as stored, perhaps not upright; gives (H, W), upright


def picture_and_regions(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[Image.Image, list[Region]]:
    """Read the picture, as it is stored, and every region once, so that errors come before a model is loaded.

    The first `PART` masks stay in memory. `tell` gets a line on files that are left out.
    """
    picture = _shown(args.image, _content(args.image))
    _check_shades(args.image, picture)
    regions = _regions(args, tell)
    for i, region in enumerate(regions):
        mask = region.mask(picture)
        if i < PART:
            regions[i] = replace(region, mask=partial(_as_it_is, mask))
    return picture, regions


def _as_it_is(mask: Any, _: Image.Image) -> Any:
    return mask


def _regions(args: argparse.Namespace, tell: Callable[[str], None]) -> list[Region]:
    """The regions in the order in which they were typed; the whole picture if there are none."""
    found = []
    for option, given in args.regions:
        if option == "--box":
            name = ",".join(f"{x:g}" for x in given)
            found.append(Region(name, lambda p, box=given: box_mask(box, _size(p))))  # type: ignore[misc]
        elif option == "--mask":
            path, value = _with_value(given)
            found.append(Region(given, partial(_mask, path, _content(path), value)))  # a pipe is read once
        else:
            found += [Region(path.name, partial(_mask, str(path), None, None)) for path in _masks_in(Path(given), tell)]
    return found or [Region("whole picture", lambda p: np.ones(_size(p), bool))]


def _with_value(text: str) -> tuple[str, int | None]:
    """Split FILE#VALUE, unless that is the name of a file."""
    if (parts := re.fullmatch(r"(.+)#(\d+)", text, re.DOTALL)) is None or os.path.exists(text):
        return text, None
    return parts[1], int(parts[2])


def _masks_in(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: expected one of masks")
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in there if path.suffix.lower() in KINDS and not path.is_dir()]
    if not files:
        raise ValueError(f"{folder} holds no masks, expected pictures such as .png or .tif")
    if others := [path.name for path in there if path not in files]:
        tell(f"left out of {folder}, as no pictures: {_listed(others)}")
    return files


def _listed(some: Sequence[object]) -> str:
    shown = ", ".join(map(str, some[:_LISTED]))
    return shown if len(some) <= _LISTED else f"{shown} and {len(some) - _LISTED} more"


def _size(picture: Image.Image) -> tuple[int, int]:
    """(H, W) of the upright picture."""
    return upright(picture).size[::-1]


def _mask(path: str, content: bytes | None, value: int | None, picture: Image.Image) -> Tensor:
    given = ImageOps.exif_transpose(_shown(path, _content(path) if content is None else content))
    mask = given if value is None else _pixels_of(value, given, path)
    try:
        return read(picture, mask)[1][0]
    except ValueError as error:
        raise ValueError(f"{path}: {_remedy(path, given, picture) or error}") from error


def _pixels_of(value: int, given: Image.Image, path: str) -> NDArray[np.bool_]:
    if len(given.getbands()) > 1:
        raise ValueError(f"{path}: has colours, expected one number a pixel to look for {value}")
    values = np.asarray(given)
    if not (values == value).any():
        raise ValueError(f"{path}: no pixel is {value}, expected one of {_listed(np.unique(values).tolist())}")
    return np.asarray(values == value)


def _remedy(path: str, given: Image.Image, picture: Image.Image) -> str | None:
    """What is wrong with a refused mask, and what to do about it; None: the library's message will do."""
    shown = upright(picture).size
    if given.size != shown:
        what = f"mask is {given.width} x {given.height} pixels, expected {shown[0]} x {shown[1]}"
        if given.size == picture.size:
            why = "the picture's EXIF orientation turns it, and the mask is of the picture as stored"
            return f"{what}: {why}; turn it too"
        return f"{what}, as the picture has: make it of the picture"
    if len(given.getbands()) > 1:
        return "mask is a colour picture, expected a grey one, white where to look, or one with transparency"
    values = np.unique(np.asarray(given))
    if values[-1] <= 0:
        return None
    if given.mode == "F":
        return f"mask holds {values[0]:g} to {values[-1]:g}, expected 0 to 1: save it with 8 bits, white where to look"
    found = values[values > 0].tolist()
    return (
        f"mask holds {_listed(found)}, expected 0 and 1, or grey up to 255: choose a value, {path}#{found[0]}, or save "
        "it with 8 bits, white where to look"
    )


def lines_of(given: Sequence[str]) -> list[str]:
    """The texts that are not empty, with the lines of the standard input in place of "-"."""
    lines = (_text(_content("-")).splitlines() if text == "-" else [text] for text in given)
    return [text.strip() for some in lines for text in some if text.strip()]


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"-: byte {error.start} is not UTF-8, expected a text: save it as UTF-8") from error


def _content(path: str | Path) -> bytes:
    """Read a file, a pipe (such as a shell's `<(...)`), or the standard input."""
    try:
        return bytes(_standard_input().buffer.read()) if str(path) == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}, expected a picture") from error


def _shown(path: str | Path, content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            return picture
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too large: {error}") from error
    except UNREADABLE as error:
        raise ValueError(f"{path}: {len(content)} bytes that are no picture, or a damaged one") from error


def _check_shades(path: str | Path, picture: Image.Image) -> None:
    if picture.mode != "F":
        return
    try:
        upright(picture)
    except ValueError as error:
        values = np.asarray(picture)
        raise ValueError(
            f"{path}: holds {values.min():g} to {values.max():g}, expected 0 to 255: save it with 8 bits"
        ) from error


def _standard_input() -> Any:
    if sys.stdin is None:
        raise ValueError("-: the standard input is closed, expected a file or a pipe")
    return sys.stdin
