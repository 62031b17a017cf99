"""Objects alone, on white."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .. import rle
from .filters import mask_of
from .ledger import Ledger
from .samples import Mask, Sample, Target

CONTEXT = 1.5  # as in the paper's authors' train/dataset/mask_image.py
SIDE = 1024  # pixels; a larger square is made smaller, which bounds the memory


def cut_out(picture: Image.Image, mask: Mask, context: float = CONTEXT) -> tuple[Image.Image, Image.Image]:
    """What is under a mask, in the middle of a white square, and the mask in that square, in mode L, 0 or 255.

    The square is `context` times as long as the longer side of the box around the mask, and `SIDE` pixels at most.

    Raises:
        ValueError: `context` is below 1, or the mask is of another size than the picture.
    """
    if context < 1:
        raise ValueError(f"context is {context}, expected at least 1: the box itself")
    x0, y0, x1, y1 = mask.box
    pixels = rle.decode(mask.rle, picture.size[::-1])[y0:y1, x0:x1]
    thing, shape = picture.crop(mask.box), Image.fromarray(np.where(pixels, 255, 0).astype(np.uint8))
    side = round(context * max(thing.size))
    if side > SIDE:
        size = [max(1, round(length * SIDE / side)) for length in thing.size]
        thing, side = thing.resize((size[0], size[1]), Image.Resampling.LANCZOS), SIDE
        shape = shape.resize(thing.size, Image.Resampling.BOX).point(lambda value: 255 * (value > 0))  # thin parts stay
    at = (side - thing.width) // 2, (side - thing.height) // 2
    square, found = Image.new("RGB", (side, side), "white"), Image.new("L", (side, side))
    square.paste(thing, at, shape)
    found.paste(shape, at)
    return square, found


@dataclass(frozen=True)
class CutOut:
    """Each region becomes a picture of its own, a PNG of what `cut_out` makes of it, with its phrase as caption."""

    context: float = CONTEXT

    def __call__(self, samples: list[Sample], ledger: Ledger) -> list[Sample]:
        return [self._alone(sample, target) for sample in samples for target in sample.targets]

    def _alone(self, sample: Sample, target: Target) -> Sample:
        square, shape = cut_out(sample.image, mask_of(sample, target), self.context)
        mask = Mask.of(np.asarray(shape) > 0)
        file = io.BytesIO()
        square.save(file, "PNG")
        alone = replace(target, box=mask.box, mask=mask)
        key = f"{sample.key}-{target.number}"
        return Sample(key, file.getvalue(), "png", square, target.phrase, (alone,), sample.fields)
