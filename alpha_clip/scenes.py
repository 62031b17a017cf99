"""A small drawn world: captioned pictures of clip-art in which the exact visible region of every object is known.

    >>> scene = draw_scene(0, 64)
    >>> scene.image.shape, scene.masks.shape == (len(scene.regions), 64, 64)
    ((64, 64, 3), True)

A seed and the arguments fix a scene to the byte; nothing is read from disk or from global state.
"""

from cmath import exp
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, cos, sin
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from . import backgrounds
from .backgrounds import BACKGROUNDS
from .clipart import RGB, SKETCHES, Drawing, Part, draw, tint

NOUNS: tuple[str, ...] = tuple(sorted(SKETCHES))
HELD_OUT: tuple[str, ...] = (
    "cactus", "chair", "crown", "donut", "frog", "guitar", "rocket", "snail", "snowman", "umbrella",
)  # fmt: skip
STYLES: tuple[str, ...] = ("plain", "outline", "hatched")  # a model is trained on the first alone

_MIN_SIDE = 32  # pixels; below, neither the drawings nor their masks mean much
_MIN_DIAMETER = 11  # pixels, so that even a thin object covers a dozen
_MIN_VISIBLE = 0.4  # share of an object's own area
_MIN_AREA = 12.0  # pixels of visible mask
_SMALL, _LARGE = 0.3, 0.45  # diameter as a share of the picture's shorter side


@dataclass(frozen=True)
class Region:
    """One object of a scene: what is said of it, and where it is."""

    noun: str
    phrase: str  # the noun, in part with attributes: "small red car", "bird above the tree"; no article
    color: str  # the word of the dominant colour
    size: str  # "small", "medium" or "large", relative to the picture
    box: tuple[int, int, int, int]  # (x0, y0, x1, y1) pixels around mask > 0.5, x1 and y1 exclusive
    mask: np.ndarray  # (H, W) float32 in [0, 1]: coverage by the visible part


@dataclass(frozen=True)
class Scene:
    """A picture, its caption and its objects from back to front."""

    image: np.ndarray  # (H, W, 3) uint8
    caption: str
    regions: tuple[Region, ...]
    background: str  # a word: "grass", "night", ...

    @property
    def masks(self) -> np.ndarray:
        """(K, H, W) float32 in [0, 1]; they sum to at most 1 at every pixel."""
        return np.stack([region.mask for region in self.regions])


class _Figure(NamedTuple):
    """A drawing posed in its bounding box, whose longer side is 1."""

    drawing: Drawing
    points: np.ndarray  # (N,) complex128, the corners of all parts in a row
    width: float
    height: float


class _Spot(NamedTuple):
    """Where a figure goes: the top left pixel and the diameter, in pixels."""

    x: int
    y: int
    diameter: float


class _Stamp(NamedTuple):
    """A figure in pixels."""

    color: np.ndarray  # (h, w, 3) float32 in 0..255, premultiplied by alpha
    alpha: np.ndarray  # (h, w) float32 in 0..1


def draw_scene(
    seed: int,
    size: int | tuple[int, int] = 64,
    *,
    objects: tuple[int, int] = (1, 6),
    nouns: Sequence[str] = NOUNS,
    style: str = "plain",
    scale: tuple[float, float] = (0.3, 0.5),
    overlap: float = 0.2,
    attributes: float = 0.5,
    twins: bool = False,
) -> Scene:
    """Draw the scene of a seed: same arguments, same bytes.

    Args:
        seed: any non-negative integer.
        size: the side of a square picture, or (height, width), in pixels.
        objects: fewest and most objects, inclusive.
        nouns: what may appear; the nouns of one scene are distinct, but for twins.
        style: one of STYLES.
        scale: smallest and largest object diameter as a share of the shorter side; many objects are shrunk to fit.
        overlap: probability that objects may hide each other; each still shows 40% of itself.
        attributes: probability that a phrase, or a noun of the caption, comes with an attribute.
        twins: the first two objects have the same noun.

    Raises:
        ValueError: an unknown style or noun, an impossible range, or more objects than there are nouns or room for.
    """
    height, width = (size, size) if isinstance(size, int) else size
    _check(height, width, objects, nouns, style, scale, overlap, attributes)
    if twins and objects[0] < 2:
        raise ValueError(f"objects {objects} may be one alone: twins need 2 or more")
    rng = np.random.default_rng(seed)
    count = int(rng.integers(objects[0], objects[1] + 1))
    chosen = [nouns[k] for k in rng.permutation(len(nouns))[:count]]
    if twins:
        chosen[1] = chosen[0]
    figures = [_pose(draw(noun, rng), rng) for noun in chosen]
    background = backgrounds.pick(rng, {figure.drawing.color for figure in figures})
    canvas = backgrounds.restyle(backgrounds.paint(background, rng, height, width), style)
    diameters = [min(height, width) * _between(rng, *scale) for _ in figures]

    crowded = count > 1 and rng.random() < overlap
    for arrange in (_strew, _strew, _pack) if crowded else (_pack,):
        spots = arrange(figures, diameters, height, width, rng)
        stamps = [_stamp(figure, spot.diameter, style, rng) for figure, spot in zip(figures, spots, strict=True)]
        masks = _visible(stamps, spots, height, width)
        if _all_visible(masks, stamps):
            break
    for stamp, spot in zip(stamps, spots, strict=True):
        window = canvas[_window(stamp, spot)]
        window *= 1 - stamp.alpha[..., None]
        window += stamp.color
    regions = _describe(figures, spots, masks, attributes, rng)
    caption = _caption(regions, background, attributes, rng)
    return Scene((canvas + 0.5).clip(0, 255).astype(np.uint8), caption, regions, background)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _check(
    height: int,
    width: int,
    objects: tuple[int, int],
    nouns: Sequence[str],
    style: str,
    scale: tuple[float, float],
    overlap: float,
    attributes: float,
) -> None:
    if min(height, width) < _MIN_SIDE:
        raise ValueError(f"size {(height, width)} is too small: draw at {_MIN_SIDE} pixels a side or more, then resize")
    if unknown := sorted(set(nouns) - set(NOUNS)):
        raise ValueError(f"unknown nouns {unknown}: choose from scenes.NOUNS, {', '.join(NOUNS)}")
    if len(set(nouns)) < len(nouns):
        raise ValueError(f"nouns {sorted(nouns)} repeat: name each once, a scene's nouns are distinct")
    if not 1 <= objects[0] <= objects[1]:
        raise ValueError(f"objects {objects} is no range: give (fewest, most) with 1 <= fewest <= most")
    if objects[1] > len(nouns):
        raise ValueError(f"up to {objects[1]} objects of {len(nouns)} nouns: ask for fewer objects or give more nouns")
    if objects[1] * _MIN_DIAMETER**2 > height * width:
        raise ValueError(f"up to {objects[1]} objects do not fit size {(height, width)}: ask for fewer or draw larger")
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: choose from {', '.join(STYLES)}")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale {scale} is no range: give (smallest, largest) with 0 < smallest <= largest <= 1")
    for name, value in (("overlap", overlap), ("attributes", attributes)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} is no probability: give a number from 0 to 1")


# ---- objects ---------------------------------------------------------------------------------------------------------


def _pose(drawing: Drawing, rng: np.random.Generator) -> _Figure:
    """Stretch, mirror and turn a drawing, mostly by less than 25 degrees."""
    points = np.concatenate([part.points for part in drawing.parts])
    points = _between(rng, 0.88, 1.12) * points.real + 1j * points.imag
    if rng.random() < 0.5:
        points = -points.conj()
    reach = 0.4 if rng.random() < 0.85 else 0.9  # radians
    points *= exp(1j * _between(rng, -reach, reach))
    points -= complex(points.real.min(), points.imag.min())
    width, height = points.real.max(), points.imag.max()
    diameter = max(width, height)
    return _Figure(drawing, points / diameter, width / diameter, height / diameter)


def _extent(figure: _Figure, diameter: float) -> tuple[int, int]:
    """Return (width, height) of a figure in whole pixels."""
    return ceil(figure.width * diameter), ceil(figure.height * diameter)


def _stamp(figure: _Figure, diameter: float, style: str, rng: np.random.Generator) -> _Stamp:
    """Draw a figure supersampled, shade it and reduce it."""
    width, height = _extent(figure, diameter)
    fine = 3 if diameter < 64 else 2
    # RGBX, not RGBA: Pillow would undo the premultiplied alpha when it reduces the latter.
    patch = Image.new("RGBX", (fine * width, fine * height), (0, 0, 0, 0))
    brush = ImageDraw.Draw(patch)
    ink = max(1, round(0.022 * fine * diameter)) if style == "outline" else 0
    # Pillow's pixel centres are at whole numbers, and half of an outline lies outside its polygon.
    points = (fine * diameter - ink) * figure.points + (0.5 * ink - 0.5) * (1 + 1j)
    outlines = _split(points, figure.drawing.parts)
    for fill, group in groupby(zip(figure.drawing.parts, outlines, strict=True), key=lambda pair: pair[0].fill):
        polygons = [outline for _, outline in group]
        if ink:
            for polygon in polygons:
                brush.line(polygon + polygon[:4], (45, 45, 55, 255), ink + 1, joint="curve")
        for polygon in polygons:
            brush.polygon(polygon, (0, 0, 0, 0) if fill is None else (*_restyle_fill(fill, style), 255))
    pixels = np.asarray(patch.reduce(fine)).astype(np.float32)  # (h, w, 4)
    alpha = pixels[..., 3] / 255
    light = _light(height, width, rng)
    if style == "hatched":
        light = light * _hatching(height, width, diameter, rng)
    return _Stamp(pixels[..., :3] * light[..., None], alpha)


def _split(points: np.ndarray, parts: list[Part]) -> list[list[float]]:
    """Return the corners of each part as x0, y0, x1, y1, ..."""
    flat, outlines, start = points.view(np.float64).tolist(), [], 0
    for part in parts:
        stop = start + 2 * len(part.points)
        outlines.append(flat[start:stop])
        start = stop
    return outlines


def _light(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Make a gradient from a brighter to a darker side, (h, w) float32."""
    dx, dy = _between(rng, -0.07, 0.07), _between(rng, 0, 0.09)
    x = np.arange(width, dtype=np.float32) * (2 * dx / width) - dx
    y = np.arange(height, dtype=np.float32) * (2 * dy / height) - dy
    # At most 1.04: pixels near white may clip, but soft edges gain no halo.
    return (_between(rng, 0.96, 1.04) - abs(dx) - dy) + x - y[:, None]


def _hatching(height: int, width: int, diameter: float, rng: np.random.Generator) -> np.ndarray:
    """Draw thin dark parallel lines, at most ten across, fainter than the figure's own parts: (h, w) float32."""
    angle, period = _between(rng, 0, np.pi), max(4.0, diameter / 10)
    across = cos(angle) * np.arange(width) + sin(angle) * np.arange(height)[:, None]
    return (1 - 0.25 * (1.2 * np.cos(2 * np.pi / period * across) - 0.2).clip(0, 1)).astype(np.float32)


def _restyle_fill(fill: RGB, style: str) -> RGB:
    if style == "outline":
        return tint(fill, 0.6)
    if style == "hatched":
        gray = 0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2]
        r, g, b = (round(0.12 * channel + 0.88 * (60 + 0.75 * gray)) for channel in fill)
        return r, g, b
    return fill


# ---- composition -----------------------------------------------------------------------------------------------------


def _pack(
    figures: list[_Figure], diameters: list[float], height: int, width: int, rng: np.random.Generator
) -> list[_Spot]:
    """Place figures with disjoint boxes, shrinking all of them until they fit."""
    for shrink in 0.87 ** np.arange(10):
        spots: list[_Spot] = []
        boxes: list[tuple[int, int, int, int]] = []
        for figure, diameter in zip(figures, diameters, strict=True):
            diameter = max(_MIN_DIAMETER, diameter * shrink)
            w, h = _extent(figure, diameter)
            for _ in range(12):
                x, y = int((width - w + 1) * rng.random()), int((height - h + 1) * rng.random())
                if all(x >= x1 or x + w <= x0 or y >= y1 or y + h <= y0 for x0, y0, x1, y1 in boxes):
                    spots.append(_Spot(x, y, diameter))
                    boxes.append((x, y, x + w, y + h))
                    break
            else:
                break
        else:
            return spots
    return _grid(figures, diameters, height, width, rng)


def _grid(
    figures: list[_Figure], diameters: list[float], height: int, width: int, rng: np.random.Generator
) -> list[_Spot]:
    """Place figures in the shuffled cells of a grid: a crowd that chance did not fit."""
    columns = ceil((len(figures) * width / height) ** 0.5)
    rows = ceil(len(figures) / columns)
    cell_w, cell_h = width // columns, height // rows
    spots = []
    for cell, figure, diameter in zip(rng.permutation(rows * columns).tolist(), figures, diameters, strict=False):
        diameter = min(diameter, cell_w / figure.width, cell_h / figure.height)
        w, h = _extent(figure, diameter)
        x, y = cell % columns * cell_w, cell // columns * cell_h
        x, y = x + int((cell_w - w + 1) * rng.random()), y + int((cell_h - h + 1) * rng.random())
        spots.append(_Spot(x, y, diameter))
    return spots


def _strew(
    figures: list[_Figure], diameters: list[float], height: int, width: int, rng: np.random.Generator
) -> list[_Spot]:
    """Place figures without regard to each other, shrunk so that together they fill at most 60% of the picture."""
    shrink = min(1.0, (0.6 * height * width / sum(diameter**2 for diameter in diameters)) ** 0.5)
    spots = []
    for figure, diameter in zip(figures, diameters, strict=True):
        diameter = max(_MIN_DIAMETER, diameter * shrink)
        w, h = _extent(figure, diameter)
        spots.append(_Spot(int((width - w + 1) * rng.random()), int((height - h + 1) * rng.random()), diameter))
    return spots


def _window(stamp: _Stamp, spot: _Spot) -> tuple[slice, slice]:
    height, width = stamp.alpha.shape
    return slice(spot.y, spot.y + height), slice(spot.x, spot.x + width)


def _visible(stamps: list[_Stamp], spots: list[_Spot], height: int, width: int) -> np.ndarray:
    """Return each stamp's coverage, less what the later ones hide of it: (K, H, W) float32."""
    masks = np.zeros((len(stamps), height, width), np.float32)
    for k, (stamp, spot) in enumerate(zip(stamps, spots, strict=True)):
        rows, columns = _window(stamp, spot)
        masks[:k, rows, columns] *= 1 - stamp.alpha
        masks[k, rows, columns] = stamp.alpha
    return masks


def _all_visible(masks: np.ndarray, stamps: list[_Stamp]) -> bool:
    wanted = [max(_MIN_AREA, _MIN_VISIBLE * stamp.alpha.sum()) for stamp in stamps]
    return bool((masks.sum(axis=(1, 2)) >= wanted).all())


# ---- language --------------------------------------------------------------------------------------------------------


def _describe(
    figures: list[_Figure], spots: list[_Spot], masks: np.ndarray, attributes: float, rng: np.random.Generator
) -> tuple[Region, ...]:
    height, width = masks.shape[1:]
    nouns = [figure.drawing.noun for figure in figures]
    boxes = [_box(mask) for mask in masks]
    regions = []
    for k, (figure, spot) in enumerate(zip(figures, spots, strict=True)):
        share = spot.diameter / min(height, width)
        size = "small" if share < _SMALL else "large" if share > _LARGE else "medium"
        phrase, color = nouns[k], figure.drawing.color
        if rng.random() < attributes:
            places = [f"{phrase} {place}" for place in _places(k, nouns, boxes, height, width)]
            options = [f"{word} {phrase}" for word in _adjectives(color, size)] * 2 + places
            phrase = options[int(len(options) * rng.random())]
        regions.append(Region(nouns[k], phrase, color, size, boxes[k], masks[k]))
    return tuple(regions)


def _adjectives(color: str, size: str) -> list[str]:
    return [color] if size == "medium" else [color, size, f"{size} {color}"]


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    inside = mask > 0.5
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _places(k: int, nouns: list[str], boxes: list[tuple[int, int, int, int]], height: int, width: int) -> list[str]:
    """List the true phrases of where object k is: in the picture, and relative to the others."""
    x0, y0, x1, y1 = boxes[k]
    places = []
    if x1 < 0.5 * width:
        places.append("on the left")
    if x0 > 0.5 * width:
        places.append("on the right")
    if y1 < 0.5 * height:
        places.append("at the top")
    if y0 > 0.5 * height:
        places.append("at the bottom")
    for noun, box in zip(nouns, boxes, strict=True):
        if lies := relation(boxes[k], box):
            places.append(f"{lies} the {noun}")
    return places


def relation(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> str | None:
    """Return how one box (x0, y0, x1, y1) lies to another: "left of", "right of", "above" or "below".

    None unless they are apart on one axis and overlap on the other.
    """
    across = min(one[2], other[2]) - max(one[0], other[0])  # pixels shared; negative: the gap
    down = min(one[3], other[3]) - max(one[1], other[1])
    if across > 0 >= down:
        return "above" if one[1] < other[1] else "below"
    if down > 0 >= across:
        return "left of" if one[0] < other[0] else "right of"
    return None


def _caption(regions: tuple[Region, ...], background: str, attributes: float, rng: np.random.Generator) -> str:
    """Name all objects in any order, with or without articles."""
    articles = rng.random() < 0.6
    order = [regions[k] for k in rng.permutation(len(regions))]
    names = []
    for region in order:
        name = region.noun
        if rng.random() < attributes:
            words = _adjectives(region.color, region.size)
            name = f"{words[int(len(words) * rng.random())]} {name}"
        names.append(with_article(name) if articles else name)
    if len(order) > 1 and rng.random() < 0.5 * attributes and (lies := relation(order[0].box, order[1].box)):
        names[:2] = [f"{names[0]} {lies} {names[1]}"]
    ground = f" {BACKGROUNDS[background]}" if rng.random() < 0.6 * attributes else ""
    last = " and " if rng.random() < 0.7 else ", "
    return (", ".join(names[:-1]) + last if names[:-1] else "") + names[-1] + ground


def with_article(name: str) -> str:
    """Put "a" or "an" before a noun or a phrase."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
