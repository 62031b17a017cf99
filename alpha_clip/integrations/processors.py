"""Masks through a pipeline's own image processor, so that they lie where its pixels do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..model import ALPHA_MEAN, ALPHA_STD, FOREGROUND
from ..transforms import Mask, Picture, RegionLost, read, upright


class ProcessorWithMask:
    """A processor of transformers that takes masks too.

    What it returns is what the processor returns, but ``pixel_values`` has alpha as a fourth channel: (B, 4, H, W),
    with tiles (B, T, 4, H, W), packed (B, N, 4pp).
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._of_images = getattr(processor, "image_processor", processor)

    def __call__(self, images: Picture | Sequence[Picture], masks: Any = None, **options: Any) -> Any:
        """Prepare pictures and one mask for each.

        Args:
            images: one picture or a list, as `alpha_clip.Preprocess` takes them.
            masks: one mask, or as many as pictures, None among them for a whole one. None: no alpha at all, which is
                the whole of all, to the last bit.
            options: for the processor, such as ``text`` or ``padding``; ``return_tensors`` is ``"pt"``.

        Raises:
            ValueError: there are not as many masks as pictures, or one does not fit its picture; the processor's crop
                leaves nothing of one; it makes pixels of another kind than these, or no tensors.
        """
        several = isinstance(images, (list, tuple))
        pictures: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        given = [None] * len(pictures) if masks is None else list(masks) if several else [masks]
        if len(given) != len(pictures):
            raise ValueError(
                f"{len(given)} masks of {len(pictures)} pictures, expected one each, or None for the whole"
            )
        options = {"return_tensors": "pt"} | options
        if options["return_tensors"] != "pt":
            raise ValueError(f"return_tensors is {options['return_tensors']!r}, expected 'pt': masks become tensors")
        shown = [upright(picture) for picture in pictures]
        made = self.processor(images=shown if several else shown[0], **options)
        if any(mask is not None for mask in given):
            found = [_grey(picture, mask) for picture, mask in zip(pictures, given, strict=True)]
            chosen = {**options, **options.get("images_kwargs", {})}
            own = {key: chosen[key] for key in _GEOMETRY if key in chosen}
            alpha = self._of_images(found, **_NORMALISED, **own).get("pixel_values")
            if alpha is None or alpha.ndim < 3 or len(alpha) != len(pictures):
                raise ValueError(
                    f"{type(self._of_images).__name__} makes no pixel_values of one row for each picture, as those of "
                    "CLIP, SigLIP and LLaVA do: hold the mask in `focus` where its tower looks"
                )
            _check_kept(alpha, given)
            alpha[[mask is None for mask in given]] = FOREGROUND
            made["pixel_values"] = _joined(made["pixel_values"], alpha)
        return made

    def __getattr__(self, name: str) -> Any:
        if name == "processor":  # not made yet, as when it is unpickled
            raise AttributeError(name)
        return getattr(self.processor, name)


_NORMALISED = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [ALPHA_MEAN] * 3,
    "image_std": [ALPHA_STD] * 3,
    "return_tensors": "pt",
}
_GEOMETRY = (
    *("size", "crop_size", "do_resize", "do_center_crop", "do_pad", "resample"),
    *("max_num_patches", "patch_size", "image_grid_pinpoints", "pad_size"),
)


def processor_with_mask(processor: Any) -> ProcessorWithMask:
    """A processor of transformers, or its image processor alone, that takes masks too: ``made(images, masks, ...)``."""
    return ProcessorWithMask(processor)


def _grey(picture: Picture, mask: Mask | None) -> Image.Image:
    """The mask as a picture; where there is none, one of the same size, in which nothing matters."""
    if mask is None:
        return upright(picture)
    _, found = read(picture, mask)
    if len(found) != 1:
        raise ValueError(f"{len(found)} masks of one picture, expected one: repeat the picture, [image] * {len(found)}")
    return Image.fromarray((255 * found[0].numpy()).round().astype(np.uint8)).convert("RGB")


def _check_kept(alpha: Tensor, masks: Sequence[Mask | None]) -> None:
    """Complain where not one pixel of a mask is left."""
    kept = (alpha.flatten(1) * ALPHA_STD + ALPHA_MEAN).amax(dim=1) > 0.5 / 255
    gone = [
        str(i) for i, (mask, some) in enumerate(zip(masks, kept.tolist(), strict=True)) if mask is not None and not some
    ]
    if gone:
        raise RegionLost(
            f"the processor leaves nothing of mask {', '.join(gone)}, by a crop or for being too small: crop picture "
            "and mask around it first, or pass do_center_crop=False with a square size"
        )


def _joined(pixels: Tensor, alpha: Tensor) -> Tensor:
    if pixels.ndim >= 4:  # (B, 3, H, W), or tiles (B, T, 3, H, W)
        return torch.cat([pixels, alpha[..., :1, :, :]], dim=-3)
    return torch.cat([pixels, alpha[..., ::3]], dim=-1)  # packed (B, N, 3pp): the channels of a pixel are neighbours
