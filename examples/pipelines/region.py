"""The picture, and the region of it, that the command line of an example names."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import alpha_clip

NONSENSE = (
    "At small size only the image tower has learned something. All else is random: that its words or pixels change is "
    "the point, not what they are."
)

_ASSETS = Path(str(files("alpha_clip"))) / "assets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", type=Path, help="a picture; without it, the one in the package")
    parser.add_argument("--mask", type=Path, help="a picture of the mask, white where to look")
    parser.add_argument("--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="in place of a mask")


def read(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Image.Image, np.ndarray]:
    """An upright RGB picture, and a mask of its size: floats from 0 to 1, or bools."""
    if args.image is None:
        if args.mask or args.box:
            parser.error("--mask and --box belong to a picture: give --image too")
        objects = np.asarray(Image.open(_ASSETS / "sample_masks.png"))  # 0 is background
        return Image.open(_ASSETS / "sample.png").convert("RGB"), objects == 2
    if (args.mask is None) == (args.box is None):
        parser.error("where to look? give --mask or --box, one of the two")
    image = ImageOps.exif_transpose(Image.open(args.image)).convert("RGB")
    if args.box is not None:
        return image, alpha_clip.box_mask(args.box, image.size[::-1])
    return image, np.asarray(Image.open(args.mask).convert("L")) / 255
