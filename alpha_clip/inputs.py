"""Check and normalise what both towers are given: pixels, masks and token ids.

The one place of the mask's normalisation, ``(mask - 0.5) / 0.26``. Tensors only.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

# The image tower was trained on (mask - 0.5) / 0.26: +1.923 where it should look, -1.923 elsewhere.
ALPHA_MEAN = 0.5
ALPHA_STD = 0.26
FOREGROUND = (1 - ALPHA_MEAN) / ALPHA_STD


def normalised(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn a mask, bool or floating in [0, 1], into alpha in `dtype`: ``(mask - 0.5) / 0.26``, +1.923 where it is 1.

    >>> normalised(torch.tensor([True, False])).tolist() == normalised(torch.tensor([1.0, 0.0])).tolist()
    True
    """
    if mask.dtype == torch.bool:  # on any device: not all have float64
        return torch.full_like(mask, -FOREGROUND, dtype=dtype).masked_fill(mask, FOREGROUND)
    # In float64, so that 1 becomes FOREGROUND to the bit; Apple's GPUs have none.
    mask = mask.float() if mask.device.type == "mps" else mask.double()
    return ((mask - ALPHA_MEAN) / ALPHA_STD).to(dtype)


def denormalised(alpha: Tensor) -> Tensor:
    """Turn alpha back into the mask that it was made from, about in [0, 1] and in alpha's dtype."""
    return alpha * ALPHA_STD + ALPHA_MEAN


def as_image_batch(image: Tensor) -> Tensor:
    """Return `image` as (B, 3, H, W), or raise TypeError or ValueError if it is not floating pixels."""
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        remedy = "`*preprocess(image, mask)`" if isinstance(image, tuple) else "`preprocess(image)`"
        raise TypeError(f"image is {kind}, expected a floating tensor (B, 3, H, W): use {remedy}")
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(f"image is {tuple(image.shape)}, expected (B, 3, H, W) or (3, H, W): use `preprocess(image)`")
    return image if image.ndim == 4 else image[None]


def as_alpha(alpha: Tensor, image: Tensor) -> Tensor:
    """Return `alpha` as (B or 1, 1, H, W), or raise TypeError or ValueError if it does not fit (B or 1, 3, H, W)."""
    if not isinstance(alpha, Tensor) or not (alpha.is_floating_point() or alpha.dtype == torch.bool):
        kind = alpha.dtype if isinstance(alpha, Tensor) else type(alpha).__name__
        raise TypeError(
            f"alpha is {kind}, expected a bool mask or a floating tensor of (mask - 0.5) / 0.26: "
            "pass `mask.bool()`, or what `preprocess(image, mask)` returns"
        )
    shape, expected = tuple(alpha.shape), tuple(image.shape[-2:])
    if alpha.ndim == 2:
        alpha = alpha[None, None]
    elif alpha.ndim == 3:
        alpha = alpha[:, None]
    if alpha.ndim != 4 or alpha.shape[1] != 1 or tuple(alpha.shape[-2:]) != expected:
        h, w = expected
        remedy = "transform the two together with `preprocess(image, mask)`"
        if shape[-2:] == expected and shape[0] == image.shape[0] and (len(shape) == 4 or shape[2:-2] == (1,)):
            k = shape[1]  # a DataLoader makes this of K masks of each image
            remedy = f"pass {k} masks of each image as `image.repeat_interleave({k}, 0), alpha.flatten(0, 1)`"
        raise ValueError(
            f"alpha is {shape}, expected (B, 1, {h}, {w}), (B, {h}, {w}) or ({h}, {w}) to fit the image "
            f"{tuple(image.shape)}: {remedy}"
        )
    # Not len(), which would fix the size of the batch in torch.export.
    if alpha.shape[0] != image.shape[0] and alpha.shape[0] != 1 and image.shape[0] != 1:
        raise ValueError(
            f"{len(image)} images and {len(alpha)} alphas: the two batches must be equal, or one of them 1"
        )
    return alpha


def normalised_alpha(alpha: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `as_alpha` gives in `dtype`: a bool mask is normalised here, and floats already are."""
    return normalised(alpha, dtype) if alpha.dtype == torch.bool else alpha.to(dtype)


def warn_if_not_normalised(alpha: Tensor) -> bool:
    """Warn if a floating alpha has values that only a plain mask has; return whether it has."""
    if not alpha.numel():
        return False
    low, high = alpha.min(), alpha.max()
    if low >= 0 and high <= 1:
        where = "lie within [0, 1]"
    elif max(high, -low) > 5 * FOREGROUND:  # less may be an alpha that is being optimised
        where = f"reach from {low:.4g} to {high:.4g}, far beyond ±{FOREGROUND:.3f}"
    else:
        return False
    warnings.warn(
        f"the values of this floating alpha {where}, so it is almost surely a mask that was not normalised. Pass a "
        "bool mask, or (mask - 0.5) / 0.26, as `preprocess(image, mask)` returns it.",
        stacklevel=3,
    )
    return True


def as_tokens(text: Tensor, context_length: int) -> Tensor:
    """Return `text`, or raise TypeError or ValueError if it is not integer ids (N, L) with L up to `context_length`."""
    if not isinstance(text, Tensor) or text.is_floating_point() or text.dtype == torch.bool:
        kind = text.dtype if isinstance(text, Tensor) else type(text).__name__
        raise TypeError(f"text is {kind}, expected an integer tensor of token ids: use alpha_clip.tokenize(...)")
    if text.ndim != 2 or not 0 < text.shape[1] <= context_length:
        raise ValueError(
            f"text is {tuple(text.shape)}, expected (N, L) with L from 1 to {context_length}: "
            f"use alpha_clip.tokenize(texts, context_length={context_length})"
        )
    return text
