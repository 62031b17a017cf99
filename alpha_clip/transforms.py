"""Turn a picture and its masks into the tensors that the model takes, by one geometry.

Pictures are PIL images, uint8 arrays or files; what masks may be is in `given_masks`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms import functional as F

from .given_masks import Mask as Mask
from .given_masks import opened, read_masks
from .inputs import normalised

# OpenAI's CLIP, clip.py: _transform.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

Geometry: TypeAlias = Literal["crop", "pad", "squash"]
Picture: TypeAlias = Image.Image | NDArray[np.uint8] | str | os.PathLike[str]


class RegionLost(ValueError):
    """Nothing of a mask is left in the pixels that the model is given."""


class NoForeground(UserWarning):
    """After resizing, no pixel of a mask is above 0.5."""


class Preprocess(Compose):
    """CLIP's image transform to ``n`` x ``n`` pixels, which also takes a mask, or K masks, of the picture.

    ``mean`` and ``std`` are the pixels', for models of other families.

    A picture is a PIL image, a (H, W, 3), (H, W, 4) or (H, W) uint8 array, or a path. Without a mask the result is bit
    for bit that of CLIP's five steps, which are in ``transforms``, except for 16-bit grey, which CLIP turns white; like
    CLIP, it then ignores an EXIF orientation. With a mask the picture is turned upright first, and the mask is
    taken to be of the upright picture.

    A mask is (H, W), K of them are (K, H, W) or a list. Each is 1 (foreground) where the model should look and 0
    elsewhere, anything in between stays soft, and may be given as

    * bool; floats in [0, 1]; integers that are only 0 and 1, or else 0 to 255. Integers with a maximum of 2 to 127 are
      refused: they are far more often a label map than a mask of which nothing is even half foreground. So are those
      with flat, hard-edged areas of what is neither background nor 255; soft edges, blur and JPEG's noise are none;
    * a PIL image or path. Of a picture with transparency its alpha channel is the mask; else a grey picture is read as
      integers, whatever its mode. A palette with colours means labels, 0 being background: exactly one other label may
      occur, and is the foreground. Any other colour picture is refused.

    ``geometry`` says how a picture becomes square:

    * ``"crop"`` (CLIP's): resize the shorter side to n, take the centre. It may cut a mask off, see below;
    * ``"pad"`` (the Alpha-CLIP authors' in training): pad with black, and masks with 0, to a centred square, resize. A
      mask that is 1 everywhere stays 1 in the padding too: it says "the whole picture". A shorter side of which less
      than a pixel would be left becomes one pixel;
    * ``"squash"``: resize to n x n, whatever the aspect ratio.

    >>> preprocess = Preprocess(224)
    >>> rgb, alpha = preprocess(Image.new("RGB", (640, 480)), box_mask((100, 100, 300, 200), (480, 640)))
    >>> rgb.shape, alpha.shape
    (torch.Size([3, 224, 224]), torch.Size([1, 224, 224]))
    """

    def __init__(self, n: int, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD) -> None:
        super().__init__(
            [
                Resize(n, interpolation=InterpolationMode.BICUBIC),
                CenterCrop(n),
                _to_rgb,
                ToTensor(),
                Normalize(mean, std),
            ]
        )
        self.n = n
        self._own = self._names()

    def _names(self) -> list[str]:
        return [type(step).__name__ for step in self.transforms]

    @overload
    def __call__(self, image: Picture, mask: None = None, *, geometry: Geometry = "crop") -> Tensor: ...
    @overload
    def __call__(
        self, image: Picture, mask: Mask | Sequence[Mask], *, geometry: Geometry = "crop"
    ) -> tuple[Tensor, Tensor]: ...

    def __call__(
        self, image: Picture, mask: Mask | Sequence[Mask] | None = None, *, geometry: Geometry = "crop"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return rgb, (3, n, n) float32, normalised; with a mask, rgb and alpha.

        Alpha is (1, n, n), or (K, 1, n, n) for K masks, and holds ``(mask - 0.5) / 0.26``: 1.923 is foreground.

        Raises:
            ValueError: the mask does not fit the picture, is empty, or has values that are not a mask's; the crop
                leaves nothing of it; the geometry is unknown; an array is not a picture's.
            TypeError: the picture or a mask is of another kind than those above.

        Warns:
            UserWarning: the crop takes more than a tenth of a mask that is not the whole picture; or ``transforms`` was
                changed.
            NoForeground: a mask is so small or thin that no pixel of n x n is foreground.
        """
        if geometry not in get_args(Geometry):
            raise ValueError(f"geometry is {geometry!r}, expected one of {', '.join(get_args(Geometry))}")
        if mask is None:
            return self._rgb(_as_picture(image), geometry)
        if self._names() != self._own:
            warnings.warn(
                "`transforms` of this preprocess was changed: what moves the picture there does not move the mask. "
                "Change picture and mask before it instead",
                stacklevel=2,
            )
        picture, masks, count = _read(image, mask)
        one = count is None
        alphas, kept, seen = zip(*(self._alpha(mask, geometry) for mask in masks), strict=True)
        _check_kept(kept, one)
        _check_seen(seen, one, self.n)
        alpha = torch.stack(alphas)  # (K, n, n)
        return self._rgb(picture, geometry), alpha if one else alpha[:, None]

    def _rgb(self, picture: Image.Image, geometry: Geometry) -> Tensor:
        if geometry != "crop":  # CLIP crops in the picture's own mode; a palette would be padded with its colour 0
            picture = self._square(_to_rgb(picture), geometry, InterpolationMode.BICUBIC)
        rgb: Tensor = super().__call__(picture)
        return rgb

    def _alpha(self, mask: Tensor, geometry: Geometry) -> tuple[Tensor, float, bool]:
        """Turn a mask, (H, W) in [0, 1], into alpha, (n, n), by the same geometry as `_rgb`.

        Also returns the share of it that the crop keeps, and whether some pixel is still foreground, if one was.
        """
        square = self._square(mask[None], geometry, InterpolationMode.BILINEAR)
        resized = F.resize(square, self.n, InterpolationMode.BILINEAR)
        alpha: Tensor = F.center_crop(resized, self.n)[0]
        kept = float(alpha.sum() / resized.sum())
        if mask.min() == 1:
            alpha, kept = torch.ones_like(alpha), 1.0
        seen = bool(alpha.max() > 0.5 or mask.max() <= 0.5)
        return normalised(alpha), kept, seen

    def _square(self, picture: Any, geometry: Geometry, interpolation: InterpolationMode) -> Any:
        """Pad or squash a PIL image or a (K, H, W) tensor, so that CLIP's resize and crop have nothing left to cut."""
        _, height, width = F.get_dimensions(picture)
        if geometry == "squash":
            return F.resize(picture, [self.n, self.n], interpolation)
        if geometry == "pad":
            if min(height, width) * self.n < max(height, width):
                picture = _line(picture, self.n, interpolation)
                _, height, width = F.get_dimensions(picture)
            side = max(height, width)
            left, top = (side - width) // 2, (side - height) // 2
            return F.pad(picture, [left, top, side - width - left, side - height - top])
        return picture


def _line(picture: Any, n: int, interpolation: InterpolationMode) -> Any:
    """Resize a PIL image or a (K, H, W) tensor to n x 1 or 1 x n pixels.

    For pictures of which n x n pixels would show less than a pixel of the shorter side. As squares in their own
    resolution, a file of 3 kB could fill the memory.
    """
    _, height, width = F.get_dimensions(picture)
    if height < width:
        return F.resize(picture, [1, n], interpolation)
    if isinstance(picture, Image.Image):
        return F.resize(picture, [n, 1], interpolation)
    return F.resize(picture.mT, [1, n], interpolation).mT  # to a width of 1, torch 2.14 resizes tensors wrongly


def upright(image: Picture) -> Image.Image:
    """Return the picture in RGB, turned upright by its EXIF orientation; it may be what `Preprocess` takes."""
    return _to_rgb(ImageOps.exif_transpose(_as_picture(image)))


def read(image: Picture, mask: Mask | Sequence[Mask]) -> tuple[Image.Image, Tensor]:
    """Return the picture, upright and in RGB, and its masks, (K, H, W) float32 in [0, 1]; for one mask, K is 1.

    Both are given as `Preprocess` takes them, and what does not fit raises the same errors.
    """
    picture, masks, count = _read(image, mask)
    found = torch.empty(count or 1, picture.height, picture.width)  # a list of them would take as much again
    for row, values in zip(found, masks, strict=True):
        row.copy_(values)
    return _to_rgb(picture), found


def _read(image: Picture, mask: Mask | Sequence[Mask]) -> tuple[Image.Image, Iterator[Tensor], int | None]:
    """Return the picture, upright, its masks, (H, W) each, and their number K; None: it was one mask without K.

    Masks are scaled when their turn comes: all of them in float32 would fill the memory.
    """
    stored = _as_picture(image)
    turned = ImageOps.exif_transpose(stored)
    return turned, *read_masks(mask, turned.size, stored.size)


def mask_box(mask: NDArray[Any]) -> tuple[int, int, int, int]:
    """Return the box (x0, y0, x1, y1) around the pixels of a mask (H, W) above 0.5; x1 and y1 are exclusive.

    >>> mask_box(box_mask((1, 0, 3, 1), (2, 4)))
    (1, 0, 3, 1)

    Raises:
        ValueError: nothing is above 0.5.
    """
    ys, xs = np.nonzero(mask > 0.5)
    if len(ys) == 0:
        raise ValueError(f"a mask of {mask.shape} with no pixel above 0.5: expected a region to look at")
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def box_mask(box: Sequence[float], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the mask, (H, W) float32 in [0, 1], of a ``box`` (x0, y0, x1, y1) in a picture of ``size`` (H, W).

    Pixel coordinates from the top left corner, x1 and y1 exclusive: pixel i spans i to i + 1. A pixel that the box
    covers in part holds the covered share. What lies outside the picture is cut off.

    >>> box_mask((1, 0, 2.5, 1), (2, 4))
    array([[0. , 1. , 0.5, 0. ],
           [0. , 0. , 0. , 0. ]], dtype=float32)

    Raises:
        ValueError: the box has not four numbers, holds NaN, has no area, or lies outside the picture.

    Warns:
        UserWarning: all corners are in [0, 1], in a picture of more than 2 x 2 pixels: shares of its sides, probably.
    """
    corners = np.asarray(box, dtype=np.float64)
    if corners.shape != (4,):
        raise ValueError(f"box has shape {corners.shape}, expected 4 numbers (x0, y0, x1, y1)")
    (x0, y0, x1, y1), (height, width) = corners.tolist(), size
    if not (x0 < x1 and y0 < y1):
        raise ValueError(
            f"box is {(x0, y0, x1, y1)}, expected x0 < x1 and y0 < y1: make (x, y, w, h) x, y, x + w, y + h"
        )
    if min(x0, y0) >= 0 and max(x1, y1) <= 1 and max(height, width) > 2:
        warnings.warn(
            f"box {(x0, y0, x1, y1)} covers no more than 1 of {height} x {width} pixels, expected coordinates in "
            "pixels: if these are shares of the sides, multiply x by the width and y by the height",
            stacklevel=2,
        )
    mask = np.outer(_coverage(y0, y1, height), _coverage(x0, x1, width))
    if not mask.any():
        raise ValueError(
            f"box {(x0, y0, x1, y1)} lies outside the picture of height {height} and width {width}, "
            "expected some of it inside: check the order (x0, y0, x1, y1)"
        )
    return mask.astype(np.float32)


def _coverage(start: float, stop: float, length: int) -> NDArray[np.float64]:
    """Return the share of each pixel, (length,) in [0, 1], that lies between start and stop."""
    pixel = np.arange(length)
    covered: NDArray[np.float64] = np.minimum(pixel + 1, stop) - np.maximum(pixel, start)
    return covered.clip(0, 1)


def _to_rgb(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB")


def _in_eight_bits(picture: Image.Image) -> Image.Image:
    """Reduce 16-bit grey to 8 bits, and check that a float image is 0 to 255: Pillow's conversion would clip both.

    Raises:
        ValueError: it has floats that are not 0 to 255.
    """
    if picture.mode == "F":
        low, high = (floats := np.asarray(picture)).min(), floats.max()
        if not (low >= 0 and (1 < high <= 255 or high == 0)):  # NaN fails too
            raise ValueError(
                f"image is a PIL image of mode F with floats from {low:g} to {high:g}, expected 0 to 255: make it "
                "8 bits, such as Image.fromarray((255 * np.asarray(image)).astype(np.uint8)) of floats in [0, 1]"
            )
        return picture
    if not picture.mode.startswith("I") or (values := np.asarray(picture)).max() <= 255:
        return picture
    eight = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
    eight.info = picture.info  # with its EXIF
    return eight


def _as_picture(image: Picture) -> Image.Image:
    if isinstance(image, (str, os.PathLike)):
        image = opened(image)
    if isinstance(image, Image.Image):
        return _in_eight_bits(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image is {type(image).__name__}, expected a PIL image, a uint8 array (H, W, 3) or a path")
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
        raise ValueError(
            f"image is a {image.dtype} array of shape {image.shape}, expected uint8 of (H, W, 3), (H, W, 4) or (H, W): "
            "move the channels last, and scale floats in [0, 1] by 255"
        )
    return Image.fromarray(image)


def _check_seen(seen: Sequence[bool], one: bool, n: int) -> None:
    """Warn of masks of which the resize left no foreground."""
    if missing := ["the mask" if one else f"mask {i}" for i, there in enumerate(seen) if not there]:
        warnings.warn(
            f"no pixel of {n} x {n} is foreground in {', '.join(missing)}, smaller or thinner there than a pixel: "
            'look closer with embed_regions(model, image, mask, "crop"), or at a larger input size',
            NoForeground,
            stacklevel=3,  # at the caller of __call__
        )


def _check_kept(kept: Sequence[float], one: bool) -> None:
    """Raise or warn if the crop keeps too little of a mask; ``kept`` is the share of each, in [0, 1]."""
    named = [(share, "the mask" if one else f"mask {i}") for i, share in enumerate(kept)]
    remedy = 'pass geometry="pad" to keep the whole picture'
    gone = [name for share, name in named if share < 0.005]
    if gone:
        raise RegionLost(f"the centre crop leaves nothing of {', '.join(gone)}: {remedy}")
    cut = [f"{1 - share:.0%} of {name}" for share, name in named if share < 0.9]
    if cut:
        warnings.warn(f"the centre crop cuts off {', '.join(cut)}: {remedy}", stacklevel=3)  # at the caller of __call__
