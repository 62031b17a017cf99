"""The command-line options of the examples that name a picture and a region of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import alpha_clip
from alpha_clip.integrations import alpha_weight
from alpha_clip.transforms import read as read_masks
from alpha_clip.transforms import upright

NONSENSE = (
    "At small size only the image tower is trained, and everything else is random: the point is that words or pixels "
    "change, not what they are."
)

_ASSETS = Path(str(files("alpha_clip"))) / "assets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", type=Path, help="a picture [the sample in the package]")
    parser.add_argument("--mask", type=Path, help="the mask as a picture, white where to look")
    parser.add_argument("--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="a box instead of a mask")


def count(text: str) -> int:
    """The type of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count, expected 1 or more")
    return int(text)


def read(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Image.Image, np.ndarray]:
    """Return an upright RGB picture, and a mask of its size: floats from 0 to 1, or bools."""
    if args.image is None:
        if args.mask or args.box:
            parser.error("--mask and --box belong to a picture: give --image too")
        objects = np.asarray(Image.open(_ASSETS / "sample_masks.png"))  # 0 is background
        return Image.open(_ASSETS / "sample.png").convert("RGB"), objects == 2
    if (args.mask is None) == (args.box is None):
        parser.error("where to look? give --mask or --box, one of the two")
    if args.box is not None:
        image = upright(args.image)
        return image, alpha_clip.box_mask(args.box, image.size[::-1])
    image, (mask,) = read_masks(args.image, args.mask)
    return image, mask.numpy()


def rest(mask: np.ndarray) -> np.ndarray | None:
    """The mask of everything but the region; None if the region is the whole picture."""
    others: np.ndarray = 1.0 - mask
    return others if others.max() >= 0.5 else None


def check_alpha(model: torch.nn.Module, name: str) -> None:
    """Raise if all alpha weights are zero, since then no mask changes anything."""
    if not alpha_weight(model).any():
        raise ValueError(
            f"{name} holds no alpha weights, and without any a mask changes nothing: name some that fit, such as "
            "--alpha grit20m, or give a folder that was saved with them"
        )


@contextmanager
def one_line_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End the command with a one-line message if a file, a name or a region is wrong."""
    try:
        yield
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        parser.exit(1, f"{parser.prog}: {' '.join(str(error).split())}\n")
