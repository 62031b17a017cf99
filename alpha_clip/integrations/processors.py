"""Send masks through a pipeline's own image processor, so that they line up with its pixels."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..inputs import FOREGROUND, normalised
from ..transforms import Mask, Picture, RegionLost, read, upright

_EXACT = 1e-4  # tolerance for values in [0, 1]; those of 8 bits are 4e-3 apart


class ProcessorWithMask:
    """A transformers processor that takes masks too.

    It returns what the processor returns, except that ``pixel_values`` has alpha as a fourth channel: (B, 4, H, W);
    with tiles, (B, T, 4, H, W); as packed patches, (B, N, 4pp).
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._of_images = getattr(processor, "image_processor", processor)

    def __call__(
        self, images: Picture | Sequence[Picture | Sequence[Picture]], masks: Any = None, **options: Any
    ) -> Any:
        """Prepare pictures and one mask for each.

        Args:
            images: one picture, a list, or a list of lists, one for each chat; pictures as `alpha_clip.Preprocess`
                takes them. One with a mask is turned upright, as its EXIF orientation says; one without goes to the
                processor as it is.
            masks: one mask of the upright picture, or as many as pictures, in the same lists; None in place of a mask
                or of a list of them means whole pictures. None alone gives no alpha at all, but what the processor
                makes by itself, to the last bit.
            options: for the processor, such as ``text`` or ``padding``; ``return_tensors`` is ``"pt"``.

        Raises:
            ValueError: there are not as many masks as pictures, or one does not fit its picture; the processor's crop
                leaves nothing of a mask; the processor makes pixels of another kind, or no tensors.
        """
        pairs = list(_pairs(images, masks))
        given = [mask for _, mask in pairs]
        options = {"return_tensors": "pt"} | options
        if options["return_tensors"] != "pt":
            raise ValueError(f"return_tensors is {options['return_tensors']!r}, expected 'pt': masks become tensors")
        shown = [_shown(picture, mask) for picture, mask in pairs]
        made, chosen = self._made(_nested_as(images, iter(shown)), options)
        if any(mask is not None for mask in given):
            pixels = self._with_alpha(_pixels(made), shown, given, chosen)
            made["pixel_values"] = pixels
        return made

    def _made(self, images: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Run the processor; return what it makes, and the options that it gave its image processor."""
        if self._of_images is self.processor:
            return self.processor(images=images, **options), options
        twin = copy.copy(self.processor)
        twin.image_processor = recorder = _Recorder(self._of_images)
        return twin(images=images, **options), recorder.options

    def _with_alpha(
        self, pixels: Any, shown: Sequence[Any], given: Sequence[Mask | None], options: dict[str, Any]
    ) -> Tensor:
        pictures = [_drawn(picture, mask) for picture, mask in zip(shown, given, strict=True)]
        own = {key: value for key, value in options.items() if key not in _OF_PICTURES} | _PLAIN
        kind = type(self._of_images).__name__
        try:
            found = _pixels(_padding_with_black(self._of_images)(pictures, **own))
        except TypeError as error:  # without these options it ran
            raise ValueError(f"{kind} does not take the options that a mask needs, {_INSTEAD}: {error}") from error
        if not _is_like(found, pixels, len(given)):
            raise ValueError(
                f"{kind} makes no pixel_values of one row for each picture, as those of CLIP, SigLIP and LLaVA do: "
                f"{_INSTEAD}"
            )
        masked = [i for i, mask in enumerate(given) if mask is not None]
        mask, black, again = _channels(found)
        _check_values(kind, mask[masked], black[masked], again[masked])
        _check_kept(mask, given)
        alpha = normalised(mask.clamp(0, 1), found.dtype)
        alpha[[each is None for each in given]] = FOREGROUND
        if pixels.ndim == 3:
            return torch.cat([pixels, alpha], dim=-1)
        return torch.cat([pixels, alpha.unsqueeze(-3)], dim=-3)

    def __getattr__(self, name: str) -> Any:
        if name == "processor":  # not set yet, while it is unpickled
            raise AttributeError(name)
        return getattr(self.processor, name)


_PLAIN = {  # values stay in [0, 1]; padding with zero or the mean, before or after normalising, is 0
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.0] * 3,
    "image_std": [1.0] * 3,
    "return_tensors": "pt",
}
_COLOURS = ("background_color", "high_res_background_color")
_OF_PICTURES = (*_COLOURS, "input_data_format")
_INSTEAD = "hold the mask in `focus` where its tower looks"


def processor_with_mask(processor: Any) -> ProcessorWithMask:
    """Let a transformers processor, or an image processor alone, take masks too: ``made(images, masks, ...)``."""
    return ProcessorWithMask(processor)


class _Recorder:
    """An image processor that remembers the options it was called with."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.options: dict[str, Any] = {}

    def __call__(self, images: Any, **options: Any) -> Any:
        self.options = options
        return self.processor(images, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)


def _pairs(images: Any, masks: Any) -> Iterator[tuple[Any, Mask | None]]:
    """Yield each picture with its mask, from lists that are nested alike."""
    if not isinstance(images, (list, tuple)):
        yield images, masks
        return
    if masks is None:
        given = [None] * len(images)
    else:
        given = list(masks) if isinstance(masks, (list, tuple, np.ndarray, Tensor)) else [masks]
    if len(given) != len(images):
        nested = any(isinstance(image, (list, tuple)) for image in images)
        raise ValueError(
            f"{len(given)} masks of {len(images)} {'lists of ' if nested else ''}pictures, expected one each, or None "
            f"for the whole{': nest the masks as the pictures are, [[mask, None], [mask]]' if nested else ''}"
        )
    for image, mask in zip(images, given, strict=True):
        yield from _pairs(image, mask)


def _nested_as(images: Any, flat: Iterator[Any]) -> Any:
    """Nest the pictures of `flat` as `images` is nested."""
    return [_nested_as(image, flat) for image in images] if isinstance(images, (list, tuple)) else next(flat)


def _shown(picture: Any, mask: Mask | None) -> Any:
    """The picture as the processor gets it: upright if it has a mask, and opened if it is a `Path`."""
    return picture if mask is None and not isinstance(picture, os.PathLike) else upright(picture)


def _drawn(picture: Any, mask: Mask | None) -> Any:
    """The mask as a picture, in red and blue on black; without a mask, the picture itself, for its size.

    Green is 0 everywhere. If it comes out otherwise, the processor pads with a colour or mixes colours.
    """
    if mask is None:
        return picture
    _, found = read(picture, mask)
    if len(found) != 1:
        raise ValueError(f"{len(found)} masks of one picture, expected one: repeat the picture, [image] * {len(found)}")
    grey = Image.fromarray((255 * found[0].numpy()).round().astype(np.uint8))
    return Image.merge("RGB", (grey, Image.new("L", grey.size), grey))


def _padding_with_black(processor: Any) -> Any:
    """Copy an image processor, with black for the colours that it pads with, where these are attributes."""
    made = copy.copy(processor)
    for name in _COLOURS:
        if hasattr(made, name):
            setattr(made, name, (0, 0, 0))
    return made


def _pixels(made: Any) -> Any:
    return made.get("pixel_values") if isinstance(made, Mapping) else None


def _is_like(found: Any, pixels: Any, count: int) -> bool:
    """Whether both are tensors of one shape with `count` rows, of three channels or of packed patches."""
    if not isinstance(found, Tensor) or not isinstance(pixels, Tensor) or found.shape != pixels.shape:
        return False
    return found.ndim >= 3 and len(found) == count and found.shape[-1 if found.ndim == 3 else -3] % 3 == 0


def _channels(pixels: Tensor) -> tuple[Tensor, ...]:
    if pixels.ndim == 3:  # packed (B, N, 3pp): the channels of a pixel are neighbours
        return pixels.unflatten(-1, (-1, 3)).unbind(-1)
    return pixels.unbind(-3)  # (B, 3, H, W), or tiles (B, T, 3, H, W)


def _check_values(kind: str, mask: Tensor, black: Tensor, again: Tensor) -> None:
    """Raise unless masks still have values from 0 to 1, the same in red and blue, and black is still 0."""
    low, high = mask.min().item(), mask.max().item()
    if black.abs().max() > _EXACT or (mask - again).abs().max() > _EXACT or low < -_EXACT or high > 1 + _EXACT:
        raise ValueError(
            f"{kind} makes values from {low:.3g} to {high:.3g} of a mask, and {black.min():.3g} to {black.max():.3g} "
            f"of black, expected 0 to 1, and 0: it pads with a colour, mixes colours, or has a scale of its own. "
            f"Without that, or {_INSTEAD}"
        )


def _check_kept(values: Tensor, masks: Sequence[Mask | None]) -> None:
    """Raise if no pixel of a mask is left."""
    kept = values.flatten(1).amax(dim=1) > 0.5 / 255
    gone = [
        str(i) for i, (mask, some) in enumerate(zip(masks, kept.tolist(), strict=True)) if mask is not None and not some
    ]
    if gone:
        raise RegionLost(
            f"the processor leaves nothing of mask {', '.join(gone)}, by a crop or for being too small: crop picture "
            "and mask around it first, or pass do_center_crop=False with a square size"
        )
