"""The picture, and the region of it, that the command line of an example names."""

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
    "At small size only the image tower has learned something. All else is random: that its words or pixels change is "
    "the point, not what they are."
)

_ASSETS = Path(str(files("alpha_clip"))) / "assets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", type=Path, help="a picture; without it, the one in the package")
    parser.add_argument("--mask", type=Path, help="a picture of the mask, white where to look")
    parser.add_argument("--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="in place of a mask")


def count(text: str) -> int:
    """The type of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count, expected 1 or more")
    return int(text)


def read(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Image.Image, np.ndarray]:
    """An upright RGB picture, and a mask of its size: floats from 0 to 1, or bools."""
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
    """All but the region, or None: nothing else is in the picture."""
    others: np.ndarray = 1.0 - mask
    return others if others.max() >= 0.5 else None


def check_alpha(model: torch.nn.Module, name: str) -> None:
    """Complain of alpha weights of zero, which make no difference between masks."""
    if not alpha_weight(model).any():
        raise ValueError(
            f"{name} holds no alpha weights, and without any a mask changes nothing: name some that fit, such as "
            "--alpha grit20m, or give a folder that was saved with them"
        )


@contextmanager
def told_in_a_line(parser: argparse.ArgumentParser) -> Iterator[None]:
    """What is wrong with a file, a name or a region ends the command with one line."""
    try:
        yield
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        parser.exit(1, f"{parser.prog}: {' '.join(str(error).split())}\n")
