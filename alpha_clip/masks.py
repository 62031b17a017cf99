"""Change a mask into others of the same region, for training and evaluation.

All take and return (H, W) float32 in [0, 1]. A mask with no pixel above 0.5 raises ValueError where its box is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from .transforms import mask_box

LARGEST = 256  # pixels of the shorter side, for what is slow
_JITTER = 0.04  # of the picture's shorter side


def box(mask: np.ndarray) -> np.ndarray:
    """Fill the mask's bounding box."""
    x0, y0, x1, y1 = mask_box(mask)
    out = np.zeros_like(mask, dtype=np.float32)
    out[y0:y1, x0:x1] = 1
    return out


def ellipse(mask: np.ndarray) -> np.ndarray:
    """Fill the ellipse that touches the four sides of the bounding box; its edge is about a pixel wide."""
    x0, y0, x1, y1 = mask_box(mask)
    rx, ry = (x1 - x0) / 2, (y1 - y0) / 2
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    r = np.hypot((x + 0.5 - x0 - rx) / rx, (y + 0.5 - y0 - ry) / ry)
    return np.clip((1 - r) * min(rx, ry) + 0.5, 0, 1).astype(np.float32) * box(mask)


def jitter(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dilate or erode the mask, soften its edge and shift it, each by up to 4% of the picture's shorter side.

    A large mask is changed at a smaller size, see `at_most`.
    """
    return at_most(mask, lambda small: _jitter(small, rng))


def at_most(mask: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `change`, to a large mask at a smaller size: no model sees more of it, and the work grows with size."""
    if min(mask.shape) <= LARGEST:
        return change(mask)
    h, w = (round(n * LARGEST / min(mask.shape)) for n in mask.shape)
    return _resized(change(_resized(mask, h, w)), *mask.shape)


def _jitter(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    reach = max(1, round(_JITTER * min(mask.shape)))
    by = int(rng.integers(0, reach + 1))
    changed = dilate(mask, by) if rng.random() < 0.6 else erode(mask, by)
    if rng.random() < 0.5:
        blurred = Image.fromarray((255 * changed).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(reach * rng.random())
        )
        changed = np.asarray(blurred, dtype=np.float32) / 255
    dy, dx = rng.integers(-reach, reach + 1, size=2)
    out = shift(changed, int(dy), int(dx))
    return out if out.max() > 0.5 else mask  # a thin object shrunk to nothing


def dilate(mask: np.ndarray, by: int) -> np.ndarray:
    """Dilate by `by` pixels. Two 1-D max filters cost O(by) per pixel, one 2-D filter O(by²)."""
    pixels = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None]
    rows = torch.max_pool2d(pixels, (2 * by + 1, 1), 1, (by, 0))
    dilated: np.ndarray = torch.max_pool2d(rows, (1, 2 * by + 1), 1, (0, by))[0].numpy()
    return dilated


def erode(mask: np.ndarray, by: int) -> np.ndarray:
    """Erode by `by` pixels, but not from the picture's edge: what lies beyond it counts as foreground."""
    return 1 - dilate(1 - mask, by)


def _resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(mask, dtype=np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)


def lay_over(silhouette: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Stretch the shape of `silhouette` to the bounding box of `mask`: its place, with another outline."""
    sx0, sy0, sx1, sy1 = mask_box(silhouette)
    x0, y0, x1, y1 = mask_box(mask)
    out = np.zeros_like(mask, dtype=np.float32)
    out[y0:y1, x0:x1] = _resized(silhouette[sy0:sy1, sx0:sx1], y1 - y0, x1 - x0)
    return out


def shift(mask: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Move the mask down by dy and right by dx, and fill with zeros."""
    h, w = mask.shape
    out = np.zeros_like(mask)
    out[max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = mask[
        max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)
    ]
    return out


def less(mask: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Cut off `share` in [0, 1) of the mask's area by a straight line at a random angle."""
    angle = 2 * np.pi * rng.random()
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    order = np.argsort((np.cos(angle) * x + np.sin(angle) * y).ravel(), kind="stable")
    area = np.cumsum(mask.ravel()[order], dtype=np.float64)
    out = mask.copy()
    out.ravel()[order[area <= share * area[-1]]] = 0
    return out


def more(mask: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Add round blobs at random places, together about `share` of the mask's area, each at most a tenth of it."""
    height, width = mask.shape
    y, x = np.ogrid[:height, :width]
    area = float(mask.sum())
    largest, left, out = (0.1 * area / np.pi) ** 0.5, share * area, mask.copy()
    for _ in range(200):  # a mask may leave no room
        radius = min(largest, (max(left, 0) / np.pi) ** 0.5)
        if radius < 0.5:  # less than a pixel
            break
        blob = np.hypot(y - height * rng.random(), x - width * rng.random()) <= radius
        before, out = float(out.sum()), np.maximum(out, blob, dtype=np.float32)
        left -= float(out.sum()) - before
    return out


def aside(mask: np.ndarray, covered: np.ndarray) -> tuple[np.ndarray, float]:
    """Move the mask to where it overlaps `covered`, (H, W) in [0, 1], least; return it and the share that overlaps."""
    x0, y0, x1, y1 = mask_box(mask)
    shape = torch.from_numpy(np.ascontiguousarray(mask[y0:y1, x0:x1]))
    under = F.conv2d(torch.from_numpy(covered)[None, None], shape[None, None])[0, 0]  # at every place the shape fits
    y, x = divmod(int(under.argmin()), under.shape[1])
    moved = np.zeros_like(mask)
    moved[y : y + y1 - y0, x : x + x1 - x0] = shape.numpy()
    return moved, float(under.min() / shape.sum())


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union; for soft masks, the sum of the smaller values over the sum of the larger ones."""
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())
