"""Other masks of the same region, for training and tests: a mask says where to look, never what is there.

All take and return (H, W) float32 in [0, 1]. A mask with no pixel above 0.5 raises ValueError.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter

from ..transforms import mask_box

LARGEST = 256  # pixels of the shorter side, for what is slow


def box(mask: np.ndarray) -> np.ndarray:
    """The bounding box, filled."""
    x0, y0, x1, y1 = mask_box(mask)
    out = np.zeros_like(mask, dtype=np.float32)
    out[y0:y1, x0:x1] = 1
    return out


def ellipse(mask: np.ndarray) -> np.ndarray:
    """The ellipse that touches the four sides of the bounding box, filled, its edge about a pixel wide."""
    x0, y0, x1, y1 = mask_box(mask)
    rx, ry = (x1 - x0) / 2, (y1 - y0) / 2
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    r = np.hypot((x + 0.5 - x0 - rx) / rx, (y + 0.5 - y0 - ry) / ry)
    return np.clip((1 - r) * min(rx, ry) + 0.5, 0, 1).astype(np.float32) * box(mask)


def jitter(mask: np.ndarray, rng: np.random.Generator, strength: float = 0.04) -> np.ndarray:
    """Grown or shrunk, softened at the edge and shifted, each by up to `strength` of the picture's shorter side.

    A large mask is changed at a smaller size: the work grows with its size, and no model sees as much of it.
    """
    if min(mask.shape) > LARGEST:
        h, w = (round(n * LARGEST / min(mask.shape)) for n in mask.shape)
        return _resized(jitter(_resized(mask, h, w), rng, strength), *mask.shape)
    reach = max(1, round(strength * min(mask.shape)))
    by = int(rng.integers(0, reach + 1))
    changed = _grown(mask, by) if rng.random() < 0.6 else 1 - _grown(1 - mask, by)
    if rng.random() < 0.5:
        blurred = Image.fromarray((255 * changed).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(reach * rng.random())
        )
        changed = np.asarray(blurred, dtype=np.float32) / 255
    dy, dx = rng.integers(-reach, reach + 1, size=2)
    out = _shift(changed, int(dy), int(dx))
    return out if out.max() > 0.5 else mask  # a thin object shrunk to nothing


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """By so many pixels to all sides; rows, then columns, which costs as much less as they are many."""
    pixels = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None]
    rows = torch.max_pool2d(pixels, (2 * by + 1, 1), 1, (by, 0))
    grown: np.ndarray = torch.max_pool2d(rows, (1, 2 * by + 1), 1, (0, by))[0].numpy()
    return grown


def _resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(mask, dtype=np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)


def lay_over(silhouette: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The shape of `silhouette`, stretched to the bounding box of `mask`: where `mask` is, with another's outline."""
    sx0, sy0, sx1, sy1 = mask_box(silhouette)
    x0, y0, x1, y1 = mask_box(mask)
    out = np.zeros_like(mask, dtype=np.float32)
    out[y0:y1, x0:x1] = _resized(silhouette[sy0:sy1, sx0:sx1], y1 - y0, x1 - x0)
    return out


def _shift(mask: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Moved down by dy and right by dx, zeros moving in."""
    h, w = mask.shape
    out = np.zeros_like(mask)
    out[max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = mask[
        max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)
    ]
    return out
