"""Ways to look at a region: a method with options, or a weighted sum of methods, parsed from text.

>>> parse("crop:context=2 + 0.5*alpha").parts[0]
Part(method='crop', options={'context': 2}, weight=1.0)
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor, nn

from ..masks import box
from ..regions import METHODS, Method, alpha, cropped, embed_regions
from ..towers import Tower
from ..transforms import Geometry
from .subjects import Subject


def squashed_mask(tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int) -> Tensor:
    """`alpha` as in the README of the authors' code, which crops the picture but squashes the mask.

    The two disagree on any picture that is not square; this shows what that costs.
    """
    rgb = tower.preprocess(picture)
    _, found = tower.preprocess(picture, masks, geometry="squash")
    return torch.cat([tower.encode(rgb[None], part) for part in found.split(chunk)])


def alpha_blurred(
    tower: Tower,
    picture: Image.Image,
    masks: NDArray[np.float32],
    chunk: int,
    sigma: float = 100,
    geometry: Geometry = "pad",
) -> Tensor:
    """`alpha` on a picture blurred outside the mask, with `sigma` in pixels (ReCLIP, arXiv 2204.05991).

    For referring expressions the Alpha-CLIP paper sums these scores and those of `alpha`.
    """
    blurred = picture.filter(ImageFilter.GaussianBlur(sigma))
    found = []
    for mask in masks:
        sharp = Image.fromarray((255 * mask).round().astype(np.uint8))
        rgb, alpha = tower.preprocess(Image.composite(picture, blurred, sharp), mask[None], geometry=geometry)
        found.append(tower.encode(rgb[None], alpha))
    return torch.cat(found)


def alpha_box(
    tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int, geometry: Geometry = "pad"
) -> Tensor:
    """`alpha` with each mask replaced by its filled box, to measure what a mask adds to a box."""
    return alpha(tower, picture, np.stack([box(mask) for mask in masks]), chunk, geometry)


def alpha_crop(
    tower: Tower, picture: Image.Image, masks: NDArray[np.float32], chunk: int, context: float = 1.5
) -> Tensor:
    """`alpha` on a crop to the mask's box, enlarged `context` times, as in the paper's COCO experiments."""
    found = []
    for i in range(0, len(masks), chunk):
        pairs = [_cropped_both(tower, picture, mask, context) for mask in masks[i : i + chunk]]
        found.append(tower.encode(*map(torch.stack, zip(*pairs, strict=True))))
    return torch.cat(found)


def _cropped_both(
    tower: Tower, picture: Image.Image, mask: NDArray[np.float32], context: float
) -> tuple[Tensor, Tensor]:
    shown = cropped(Image.fromarray(mask), mask, context)
    return tower.preprocess(cropped(picture, mask, context), np.asarray(shown), geometry="pad")


_OURS = (squashed_mask, alpha_blurred, alpha_box, alpha_crop)
_METHODS: dict[str, Method] = METHODS | {method.__name__: method for method in _OURS}
_NEED_ALPHA = {"alpha", *(method.__name__ for method in _OURS)}


@dataclass(frozen=True)
class Part:
    """A method with its options, and the weight of its scores in a sum."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True)
class Way:
    """One method, or several whose scores are added."""

    name: str
    parts: tuple[Part, ...]

    def fits(self, subject: Subject) -> bool:
        """Whether the subject can look this way: False if it takes no masks and a part needs them."""
        return subject.takes_masks or not any(part.method in _NEED_ALPHA for part in self.parts)


def parse(text: str) -> Way:
    """Parse a way, such as ``crop``, ``crop:context=2`` or ``alpha+0.5*crop:context=1.2``.

    Raises:
        ValueError: the text is malformed, or there is no such method.
    """
    return Way(text, tuple(_part(part.strip(), text) for part in text.split("+")))


def _part(text: str, whole: str) -> Part:
    match = re.fullmatch(r"(?:([\d.]+)\s*\*\s*)?(\w+)(?::(.+))?", text)
    if match is None or match[2] not in _METHODS:
        raise ValueError(
            f"{whole!r} has {text!r}, expected a method, perhaps with options and a weight, such as "
            f"'0.5*crop:context=2'; the methods are {', '.join(_METHODS)}"
        )
    weight, method, options = match.groups()
    return Part(method, _options(options, whole) if options else {}, float(weight or 1))


def _options(text: str, whole: str) -> dict[str, Any]:
    found = {}
    for option in text.split(","):
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"{whole!r} has the option {option!r}, expected name=value")
        try:
            found[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name.strip()] = value  # a word, such as a geometry
    return found


@dataclass(frozen=True)
class RegionFeatures:
    """Features of a picture's regions by each part of a way, and their cost."""

    features: tuple[Tensor, ...]  # one (K, D) for each part, float32, of unit length
    weights: tuple[float, ...]
    forwards: float  # pictures that went through the image tower
    seconds: float

    def scores(self, texts: Tensor) -> Tensor:
        """(K, T) weighted sums of the cosines to texts (T, D)."""
        return torch.stack([w * f @ texts.T for w, f in zip(self.weights, self.features, strict=True)]).sum(dim=0)


def look(
    model: nn.Module,
    image: Image.Image,
    masks: NDArray[np.float32],
    way: Way,
    chunk: int = 32,
    change: Callable[[Tower], Tower] | None = None,
) -> RegionFeatures:
    """Embed the regions of a picture in one way, with the model's tower or what `change` makes of it.

    Raises the errors of `embed_regions`.
    """
    seen = [_look(model, image, masks, part, chunk, change) for part in way.parts]
    features, forwards, seconds = zip(*seen, strict=True)
    return RegionFeatures(features, tuple(part.weight for part in way.parts), sum(forwards), sum(seconds))


def _look(
    model: nn.Module,
    image: Image.Image,
    masks: NDArray[np.float32],
    part: Part,
    chunk: int,
    change: Callable[[Tower], Tower] | None,
) -> tuple[Tensor, int, float]:
    rows: list[int] = []
    start = time.perf_counter()
    method = _counted(_METHODS[part.method], rows, change)
    found = embed_regions(model, image, masks, method, chunk=chunk, **part.options)
    found = found.float().cpu()  # waits for the device
    return found, sum(rows), time.perf_counter() - start


def _counted(method: Method, rows: list[int], change: Callable[[Tower], Tower] | None) -> Method:
    """Wrap `method` to append to `rows` how many pictures it gives to the tower."""

    def counted(tower: Tower, *args: Any, **options: Any) -> Tensor:
        tower = tower if change is None else change(tower)

        def features(*inputs: Tensor) -> Tensor:
            found: Tensor = tower.features(*inputs)
            rows.append(max(len(x) for x in inputs))
            return found

        return method(replace(tower, features=features), *args, **options)

    return counted
