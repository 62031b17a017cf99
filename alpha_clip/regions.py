"""Features of regions by any method, for comparison: a mask is one of several, and not always the best.

>>> import numpy as np
>>> from alpha_clip import embed_regions, load
>>> model, _ = load("tiny", device="cpu")
>>> left = np.zeros((60, 80), bool)
>>> left[:, :40] = True
>>> embed_regions(model, np.zeros((60, 80, 3), np.uint8), [left, ~left], "crop").shape
torch.Size([2, 128])
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from inspect import signature
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor, nn

from .inputs import denormalised
from .towers import Tower, tower_of
from .transforms import IMAGE_MEAN, Geometry, Mask, Picture, mask_box, read
from .wrappers import patch_weight

Method = Callable[..., Tensor]  # (tower, RGB picture, (K, H, W) masks in [0, 1], chunk, options) -> (K, D)

GREY = tuple(round(255 * mean) for mean in IMAGE_MEAN)  # next to nothing to a model, once normalised


def embed_regions(
    model: nn.Module,
    image: Picture,
    masks: Mask | Sequence[Mask],
    method: str | Method = "alpha",
    *,
    chunk: int = 32,
    **options: Any,
) -> Tensor:
    """Return a feature for each region of a picture, (K, D), of unit length, in the model's dtype and on its device.

    The dtype is that of `zero_shot_classifier`'s weights, so that ``features @ weights.T`` multiplies, and that of
    ``encode_image`` and ``encode_text`` (``load`` chooses float16 on CUDA). Only what these two give under autocast has
    autocast's: make it the model's again to multiply outside of it.

    Args:
        model: from `load`; an open_clip model; or a CLIP or SigLIP model of transformers; or one of these as
            ``torch.compile``, ``DataParallel`` or peft wraps it. Its own size, mean and deviation are used.
        image: a picture as `Preprocess` takes it.
        masks: (K, H, W), a list of K, or one, as `Preprocess` takes them.
        method: a name in `METHODS`, or a function of this signature.
        chunk: masks that the model sees at a time, which bounds its memory; all are held in float32, (K, H, W).
        options: of the method, by keyword; its docstring in this module says which.

    Raises:
        ValueError: there is no such method, `chunk` is below 1, or picture and masks do not fit, as in `Preprocess`.
        TypeError: the model is of another kind, cannot do this (a mask, without alpha), or an option is unknown.
        ImportError: `method` is "maskinversion", whose package is not installed.
    """
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}, or a function")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1")
    if isinstance(method, str):
        _check_options(method, options)
    picture, found = read(image, masks)
    chosen = METHODS[method] if isinstance(method, str) else method
    tower = tower_of(model)
    return chosen(tower, picture, found.numpy(), chunk, **options).to(patch_weight(tower.model).dtype)


def _check_options(method: str, options: dict[str, Any]) -> None:
    known = list(signature(METHODS[method]).parameters)[4:]
    if unknown := next((name for name in options if name not in known), None):
        raise TypeError(f"method {method!r} has no option {unknown!r}, expected {' or '.join(known) or 'none'}")


# --- by the mask ---


def alpha(
    tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int, geometry: Geometry = "pad"
) -> Tensor:
    """Pass the mask as a fourth channel (Alpha-CLIP, arXiv 2312.03818). In our own models, K masks share
    the convolution of the picture.

    `geometry` is that of `Preprocess`. Raises TypeError if the model takes no masks.
    """
    if not tower.takes_alpha:
        raise TypeError(
            f"{type(tower.model).__name__} takes no mask: use a model from alpha_clip.load, or a method that changes "
            "the picture, such as 'crop'"
        )
    rgb, found = tower.preprocess(picture, masks, geometry=geometry)
    return torch.cat([tower.encode(rgb[None], part) for part in found.split(chunk)])


def whole(
    tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int, geometry: Geometry = "pad"
) -> Tensor:
    """Encode the whole picture, whatever the mask: the baseline for all other methods.

    `geometry` is that of `Preprocess`.
    """
    rgb, _ = tower.preprocess(picture, np.ones_like(masks[0]), geometry=geometry)
    return tower.encode(rgb[None]).expand(len(masks), -1)


# --- by changing the picture ---


def crop(tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int, context: float = 1.5) -> Tensor:
    """Crop to the box around the mask, `context` (> 0) times as wide and high, within the picture."""
    return _encode(tower, (cropped(picture, mask, context) for mask in masks), chunk)


def masked_crop(
    tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int, context: float = 1.1
) -> Tensor:
    """`crop`, of the picture painted grey outside the mask (as in OVSeg, arXiv 2210.04150); `context` is above 0."""
    return _encode(tower, (cropped(_painted(picture, mask), mask, context) for mask in masks), chunk)


def cut_out(tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int) -> Tensor:
    """Paint the picture grey outside the mask, without a crop."""
    return _encode(tower, (_painted(picture, mask) for mask in masks), chunk)


def blur(tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int, strength: float = 0.05) -> Tensor:
    """Blur everything outside the mask (FGVP, arXiv 2306.04356).

    `strength`, above 0, is the blur's standard deviation as a share of the picture's shorter side.
    """
    if not strength > 0:
        raise ValueError(f"strength is {strength}, expected more than 0")
    blurred = picture.filter(ImageFilter.GaussianBlur(strength * min(picture.size)))
    return _encode(tower, (_laid_over(picture, mask, blurred) for mask in masks), chunk)


def gray(tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int) -> Tensor:
    """Remove the colour outside the mask (FGVP, arXiv 2306.04356)."""
    colourless = picture.convert("L").convert("RGB")
    return _encode(tower, (_laid_over(picture, mask, colourless) for mask in masks), chunk)


def red_circle(
    tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int, size: float = 1.2, line: float = 0.015
) -> Tensor:
    """Draw a red ellipse around the region (arXiv 2304.06712).

    It is `size` times as wide and high as the mask's box. Its line is `line` times the picture's shorter side wide, and
    at least a pixel.
    """
    return _encode(tower, (_circled(picture, mask, size, line) for mask in masks), chunk)


# --- by the last block ---


def maskclip(
    tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int, geometry: Geometry = "pad"
) -> Tensor:
    """Let the class token, in the last block, attend only to itself and to the patches under the mask.

    This needs no training; the Alpha-CLIP paper compares with it as MaskCLIP (arXiv 2208.08984). For one token,
    attending only to some tokens is the same as removing the others. A patch counts if it is half covered, or the most
    covered of all. `geometry` is that of `Preprocess`. Raises TypeError if the model has no such class token.
    """
    rgb, covered = _patches(tower, picture, masks, geometry)
    features = []
    for share in covered:
        under = torch.cat([torch.ones(1, dtype=torch.bool, device=share.device), share >= min(0.5, float(share.max()))])
        with tower.last_block_sees(lambda x, under=under: x[:, under.to(x.device)]):  # type: ignore[misc]
            features.append(tower.encode(rgb))
    return torch.cat(features)


def pool(
    tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int, geometry: Geometry = "pad"
) -> Tensor:
    """Average the features of the patches under the mask, each by itself (MaskCLIP, arXiv 2112.01071).

    In the last block a patch attends to nothing but itself, so that attention is its value, projected. One pass serves
    all masks. `geometry` is that of `Preprocess`. Raises TypeError if the model has no class token that reads patches.
    """
    rgb, covered = _patches(tower, picture, masks, geometry)
    with tower.last_block_sees(lambda x: x[0, 1:, None]):  # (N, 1, width): each patch in place of the class token
        dense = tower.encode(rgb)  # (N, D)
    return F.normalize(covered.to(dense) @ dense, dim=-1)


def ensemble(
    tower: Tower,
    picture: Image.Image,
    masks: NDArray[np.float32],
    chunk: int,
    methods: Sequence[str | Method] | None = None,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Average the features of several methods, with their default options.

    `methods` are names or functions; None: `alpha`, or `masked_crop` where the model takes no masks, and `crop`.
    `weights` are one number for each; None: 1. Raises ValueError if there are not as many, or no methods.
    """
    if methods is None:
        methods = ("alpha" if tower.takes_alpha else "masked_crop", "crop")
    weights = [1.0] * len(methods) if weights is None else list(weights)
    if not methods or len(weights) != len(methods):
        raise ValueError(f"{len(methods)} methods and {len(weights)} weights, expected as many, and at least one")
    chosen = [METHODS[method] if isinstance(method, str) else method for method in methods]
    found = [w * method(tower, picture, masks, chunk) for w, method in zip(weights, chosen, strict=True)]
    return F.normalize(torch.stack(found).sum(dim=0), dim=-1)


# --- by another package ---


def maskinversion(
    tower: Tower,
    picture: Image.Image,
    masks: NDArray[np.float32],
    chunk: int,
    geometry: Geometry = "pad",
    iterations: int = 10,
    lr: float = 0.1,
    alpha: float = 0.0,
) -> Tensor:
    """Optimise a feature for each mask, so that what explains it in the picture is the mask (arXiv 2407.20034).

    It runs the authors' own code, ``pip install maskinversion_torch``, for open_clip's ViTs; the options are those of
    its `compute_maskinversion`. Gradient descent starts at the whole picture's feature and takes `iterations` steps of
    rate `lr`; `alpha` weighs what holds it to that feature.

    Raises:
        TypeError: the model is not one of open_clip's whose class token reads the patches in blocks of CLIP's kind.
        ImportError: the package is not installed.
        ValueError: `iterations` is below 1.
        FloatingPointError: no patch explains a feature, so that the map which should be the mask is not finite.
    """
    if tower.takes_alpha or not hasattr(tower.last_block, "attention"):
        raise TypeError(
            f"maskinversion cannot see with {type(tower.model).__name__}, expected a model of open_clip with CLIP's "
            "ViT, such as ViT-B-16: use another method, such as 'masked_crop'"
        )
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}, expected at least 1")
    try:
        from maskinversion import MaskInversion
    except ImportError as error:
        raise ImportError(f"maskinversion needs {error.name}: pip install maskinversion_torch") from error

    features = []
    with torch.inference_mode(False), torch.enable_grad():
        rgb, found = tower.preprocess(picture, masks, geometry=geometry)
        with redirect_stdout(io.StringIO()):  # it tells of its progress
            inverter = MaskInversion(_ImageTower(tower.model))
        weight = next(inverter.visual.parameters())
        target = denormalised(found[:, 0]).clamp(0, 1).to(weight.device)
        for part in target.split(chunk):
            feature, explained = inverter.compute_maskinversion(
                rgb[None].to(weight), part, iterations=iterations, lr=lr, alpha=alpha, return_expl_map=True
            )
            if not (explained.isfinite().all() and feature.isfinite().all()):
                raise FloatingPointError(
                    "maskinversion found no patches that explain a feature, and nothing to descend by: use another "
                    f"method, or a smaller lr than {lr}"
                )
            features.append(F.normalize(feature.detach(), dim=-1))
    return torch.cat(features)


class _ImageTower(nn.Module):
    """A copy of the image tower of an open_clip model, on the same weights, for maskinversion.

    maskinversion hooks the modules, freezes them and makes them float32. And it gives the blocks (L, B, width), as
    open_clip 2.23 does; later ones may take (B, L, width), and would attend from picture to picture without a word.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), False) for p in model.visual.parameters()}
        self.visual = copy.deepcopy(model.visual, shared)
        self.visual.transformer.batch_first = True  # what comes is not to be turned once more
        for block in self.visual.transformer.resblocks:
            block.attn.batch_first = False

    def encode_image(self, image: Tensor) -> Tensor:
        features: Tensor = self.visual(image)
        return features


METHODS: dict[str, Method] = {
    method.__name__: method
    for method in (
        alpha,
        whole,
        crop,
        masked_crop,
        cut_out,
        blur,
        gray,
        red_circle,
        maskclip,
        pool,
        ensemble,
        maskinversion,
    )
}


# --- how ---


def _encode(tower: Tower, pictures: Iterable[Image.Image], chunk: int) -> Tensor:
    """Encode K pictures, padded to squares, to (K, D), `chunk` at a time."""
    left, features = iter(pictures), []
    while part := list(islice(left, chunk)):
        features.append(tower.encode(torch.stack([tower.preprocess(p, geometry="pad") for p in part])))
    return torch.cat(features)


def _patches(
    tower: Tower, picture: Image.Image, masks: NDArray[np.float32], geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """Return pixels (1, 3, n, n), and the share of each patch that each mask covers, (K, N) in [0, 1]."""
    rgb, found = tower.preprocess(picture, masks, geometry=geometry)
    covered = F.adaptive_avg_pool2d(denormalised(found), max(tower.grid, 1)).flatten(1)
    return rgb[None], covered.clamp(0, 1)


def cropped(picture: Image.Image, mask: NDArray[np.float32], context: float) -> Image.Image:
    """Crop `picture` to the box around `mask`, `context` times as wide and high, within the picture.

    Raises:
        ValueError: `context` is not above 0, or no pixel of the mask is above 0.5.
    """
    if not context > 0:
        raise ValueError(f"context is {context}, expected more than 0: 1 is the box itself")
    x0, y0, x1, y1 = mask_box(mask)
    dx, dy = (context - 1) * (x1 - x0) / 2, (context - 1) * (y1 - y0) / 2
    left, top = max(0, round(x0 - dx)), max(0, round(y0 - dy))
    right, bottom = min(picture.width, round(x1 + dx)), min(picture.height, round(y1 + dy))
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _laid_over(picture: Image.Image, mask: NDArray[np.float32], other: Image.Image) -> Image.Image:
    """Return `picture` inside the mask, and `other` outside."""
    return Image.composite(picture, other, Image.fromarray((255 * mask).round().astype(np.uint8)))


def _painted(picture: Image.Image, mask: NDArray[np.float32]) -> Image.Image:
    return _laid_over(picture, mask, Image.new("RGB", picture.size, GREY))


def _circled(picture: Image.Image, mask: NDArray[np.float32], size: float, line: float) -> Image.Image:
    x0, y0, x1, y1 = mask_box(mask)
    dx, dy = (size - 1) * (x1 - x0) / 2, (size - 1) * (y1 - y0) / 2
    marked = picture.copy()
    width = max(1, round(line * min(picture.size)))
    ImageDraw.Draw(marked).ellipse((x0 - dx, y0 - dy, x1 - 1 + dx, y1 - 1 + dy), outline=(255, 0, 0), width=width)
    return marked
