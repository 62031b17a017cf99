"""Clip-art of 58 everyday nouns: a few coloured polygons each, never twice the same.

A drawing is a generator of parts, back to front. A part is a fill colour and a polygon whose corners are complex
numbers `x + iy` (x to the right, y down, about -1..1): turning, scaling and mirroring a drawing are then one product
each.
The fill `None` cuts a hole through what lies behind it.
"""

import colorsys
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import radians
from typing import NamedTuple

import numpy as np

RGB = tuple[int, int, int]

# Hue (turns), saturation and value of each colour word; the gaps between the ranges keep the words distinguishable.
COLORS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-0.02, 0.015), (0.78, 0.95), (0.75, 0.95)),
    "orange": ((0.075, 0.095), (0.8, 0.98), (0.92, 1.0)),
    "yellow": ((0.135, 0.16), (0.65, 0.95), (0.92, 1.0)),
    "green": ((0.26, 0.38), (0.55, 0.85), (0.5, 0.78)),
    "blue": ((0.56, 0.63), (0.6, 0.9), (0.65, 0.95)),
    "purple": ((0.74, 0.79), (0.45, 0.7), (0.5, 0.75)),
    "pink": ((0.9, 0.95), (0.38, 0.55), (0.93, 1.0)),
    "brown": ((0.05, 0.08), (0.55, 0.75), (0.38, 0.55)),
    "black": ((0.0, 1.0), (0.0, 0.2), (0.1, 0.2)),
    "white": ((0.0, 1.0), (0.0, 0.06), (0.93, 1.0)),
    "gray": ((0.55, 0.65), (0.0, 0.1), (0.5, 0.68)),
}
BLACK, WHITE, CREAM, GLASS, STEEL = (26, 26, 30), (248, 248, 246), (250, 232, 190), (176, 222, 245), (168, 174, 184)
GOLD, BEAK, WOOD, LEAF = (245, 190, 40), (248, 150, 30), (125, 80, 45), (70, 150, 60)


class Part(NamedTuple):
    """One filled polygon of a drawing."""

    fill: RGB | None  # None: a hole
    points: np.ndarray  # (N,) complex128, x + iy


class Drawing(NamedTuple):
    """One instance of a noun."""

    noun: str
    color: str  # the word of its dominant colour, a key of COLORS
    parts: list[Part]


class Dice:
    """Random numbers and colours of a drawing; `dice(low, high)` is a uniform number."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._random = rng.random

    def __call__(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def pick(self, words: tuple[str, ...]) -> str:
        return words[int(len(words) * self._random())]

    def color(self, *words: str) -> RGB:
        """A shade of one of the colour words."""
        hue, saturation, value = COLORS[self.pick(words)]
        r, g, b = colorsys.hsv_to_rgb(self(*hue) % 1.0, self(*saturation), self(*value))
        return round(255 * r), round(255 * g), round(255 * b)


Sketch = Callable[[Dice, RGB], Iterator[Part]]
SKETCHES: dict[str, tuple[Sketch, tuple[str, ...]]] = {}  # noun -> its generator of parts, its natural colours


def draw(noun: str, rng: np.random.Generator) -> Drawing:
    """Draw one instance of a noun, upright, in one of its natural colours."""
    sketch, words = SKETCHES[noun]
    dice = Dice(rng)
    color = dice.pick(words)
    return Drawing(noun, color, list(sketch(dice, dice.color(color))))


def _noun(*colors: str) -> Callable[[Sketch], Sketch]:
    """Enter a sketch under its own name; `colors` are those its main colour is drawn from."""

    def enter(sketch: Sketch) -> Sketch:
        SKETCHES[sketch.__name__] = sketch, colors
        return sketch

    return enter


# ---- shapes ----------------------------------------------------------------------------------------------------------

_CIRCLE = np.exp(2j * np.pi * np.arange(32) / 32)
_RAMP = np.arange(21) / 20
_T = 2 * np.pi * np.arange(40) / 40
_HEART = np.sin(_T) ** 3 - 1j * (13 * np.cos(_T) - 5 * np.cos(2 * _T) - 2 * np.cos(3 * _T) - np.cos(4 * _T)) / 16


def tint(color: RGB, amount: float) -> RGB:
    """Mix in white (amount > 0, up to 1) or black (amount < 0, down to -1)."""
    goal = 255 if amount > 0 else 0
    r, g, b = (round(channel + (goal - channel) * abs(amount)) for channel in color)
    return r, g, b


def polygon(fill: RGB | None, *xy: float) -> Part:
    """A polygon of corners x0, y0, x1, y1, ..."""
    return Part(fill, np.array(xy, dtype=np.float64).view(np.complex128))


def rect(fill: RGB | None, x0: float, y0: float, x1: float, y1: float) -> Part:
    return polygon(fill, x0, y0, x1, y0, x1, y1, x0, y1)


def ellipse(fill: RGB | None, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Part:
    """An ellipse turned clockwise by `angle` degrees."""
    points = rx * _CIRCLE.real + 1j * ry * _CIRCLE.imag
    return Part(fill, complex(x, y) + (points * np.exp(1j * radians(angle)) if angle else points))


def disc(fill: RGB | None, x: float, y: float, r: float) -> Part:
    return Part(fill, complex(x, y) + r * _CIRCLE)


def line(fill: RGB, width: float, x0: float, y0: float, x1: float, y1: float) -> Part:
    start, stop = complex(x0, y0), complex(x1, y1)
    side = 0.5j * width * (stop - start) / abs(stop - start)
    return Part(fill, np.array((start + side, stop + side, stop - side, start - side)))


def _sweep(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> np.ndarray:
    angles = radians(start) + radians(stop - start) * _RAMP
    return complex(x, y) + rx * np.cos(angles) + 1j * ry * np.sin(angles)


def chord(fill: RGB | None, x: float, y: float, rx: float, ry: float, start: float = 180, stop: float = 360) -> Part:
    """The ellipse's stretch from `start` to `stop` degrees (0 right, 90 down), closed by a straight line."""
    return Part(fill, _sweep(x, y, rx, ry, start, stop))


def arc(fill: RGB, x: float, y: float, outer: complex, inner: complex, start: float, stop: float) -> Part:
    """The band between two ellipses about (x, y); their radii are `rx + 1j * ry`."""
    out = _sweep(x, y, outer.real, outer.imag, start, stop)
    return Part(fill, np.concatenate((out, _sweep(x, y, inner.real, inner.imag, stop, start))))


def burst(fill: RGB, x: float, y: float, outer: float, inner: float, tips: int, angle: float = -90) -> Part:
    """A star whose first tip points to `angle` degrees."""
    points = np.exp(1j * (radians(angle) + np.pi * np.arange(2 * tips) / tips))
    points[::2] *= outer
    points[1::2] *= inner
    return Part(fill, complex(x, y) + points)


def _eyes(x: float, y: float, apart: float, r: float) -> Iterator[Part]:
    for side in (-apart, apart):
        yield disc(WHITE, x + side, y, r)
        yield disc(BLACK, x + side, y, 0.55 * r)


# ---- food ------------------------------------------------------------------------------------------------------------


@_noun("red", "red", "green", "yellow")
def apple(u: Dice, skin: RGB) -> Iterator[Part]:
    w, h = u(0.5, 0.58), u(0.68, 0.82)
    yield line(WOOD, 0.15, 0, -0.4, u(-0.15, 0.1), -1)
    yield ellipse(skin, -0.36, 0.15, w, h)
    yield ellipse(skin, 0.36, 0.15, w, h)
    yield ellipse(u.color("green"), 0.38, -0.8, u(0.3, 0.4), u(0.14, 0.19), -20)
    yield ellipse(tint(skin, 0.5), -0.5, -0.15, 0.12, 0.2, 20)


@_noun("yellow")
def banana(u: Dice, skin: RGB) -> Iterator[Part]:
    start, deep = u(0, 15), u(1.0, 1.2)
    yield arc(skin, 0, -0.6, complex(1, deep), complex(0.86, deep - u(0.55, 0.7)), start, 180 - start)
    yield arc(tint(skin, -0.15), 0, -0.6, complex(1, deep), complex(0.98, deep - 0.13), start + 15, 165 - start)
    yield rect(WOOD, 0.84, -0.85, 1.0, u(-0.5, -0.35))
    yield disc(tint(WOOD, -0.3), -0.92, -0.55 + 0.01 * start, 0.09)


@_noun("red", "red", "purple")
def cherry(u: Dice, skin: RGB) -> Iterator[Part]:
    r, top = u(0.38, 0.46), u(0.15, 0.35)
    for x, y in ((-0.5, u(0.4, 0.55)), (0.5, u(0.35, 0.55))):
        yield line(LEAF, 0.12, x, y, top, -0.9)
        yield disc(skin, x, y, r)
        yield disc(tint(skin, 0.6), x - 0.14, y - 0.14, 0.09)
    yield ellipse(u.color("green"), top + 0.35, -0.82, u(0.33, 0.45), u(0.16, 0.22), 12)


@_noun("red")
def strawberry(u: Dice, skin: RGB) -> Iterator[Part]:
    w = u(0.72, 0.85)
    yield ellipse(skin, 0, -0.2, w, 0.55)
    yield polygon(skin, -w, -0.1, w, -0.1, 0.5 * w, 0.6, 0.12, u(0.9, 1.05), -0.12, 1.0, -0.5 * w, 0.6)
    for x, y in ((-0.45, -0.1), (0, -0.1), (0.45, -0.1), (-0.23, 0.2), (0.23, 0.2), (0, 0.5)):
        yield ellipse((255, 225, 120), x, y, 0.06, 0.1)
    yield burst(u.color("green"), 0, -0.6, u(0.6, 0.72), 0.25, 7)


@_noun("orange")
def carrot(u: Dice, root: RGB) -> Iterator[Part]:
    w, tip = u(0.3, 0.4), u(0.9, 1.1)
    leaf = u.color("green")
    for angle in (-25, 0, 25):
        yield ellipse(tint(leaf, angle / 100), angle / 80, -0.72, 0.12, u(0.34, 0.42), angle)
    yield polygon(root, -w, -0.35, -0.6 * w, -0.48, 0.6 * w, -0.48, w, -0.35, 0.06, tip, -0.06, tip)
    yield line(tint(root, -0.25), 0.06, -0.8 * w, -0.1, 0, -0.1)
    yield line(tint(root, -0.25), 0.06, 0, 0.25, 0.45 * w, 0.25)


@_noun("red", "brown", "orange")
def mushroom(u: Dice, cap: RGB) -> Iterator[Part]:
    stem, brim, tall = u(0.24, 0.34), u(0.05, 0.2), u(0.85, 1.1)
    yield polygon(CREAM, -stem, 0, stem, 0, stem + 0.08, 1, -stem - 0.08, 1)
    yield chord(cap, 0, brim, 1, tall)
    for x, y, r in ((-0.55, -0.1, 0.14), (0.05, -0.5, 0.17), (0.5, -0.15, 0.15), (-0.1, -0.05, 0.1)):
        yield disc(WHITE, x + u(-0.08, 0.08), y + u(-0.05, 0.05), r)


@_noun("yellow")
def pizza(u: Dice, cheese: RGB) -> Iterator[Part]:
    w, red = u(0.7, 0.85), u.color("red")
    yield polygon(cheese, -w, -0.6, w, -0.6, u(-0.1, 0.1), 1)
    yield arc(u.color("brown"), 0, 0.1, complex(w + 0.12, 1), complex(w, 0.72), 222, 318)
    for x, y in ((-0.35, -0.3), (0.3, -0.2), (0, 0.25)):
        yield disc(red, x + u(-0.06, 0.06), y + u(-0.06, 0.06), u(0.15, 0.19))


@_noun("pink", "brown", "white", "blue")
def donut(u: Dice, icing: RGB) -> Iterator[Part]:
    hole = u(0.27, 0.36)
    yield disc((205, 150, 90), 0, 0, 1)
    yield disc(icing, 0, 0, u(0.85, 0.9))
    for k in range(9):
        spot = u(0.55, 0.75) * np.exp(1j * (0.7 * k + u(-0.2, 0.2)))
        yield ellipse(u.color("red", "yellow", "green", "blue", "white"), spot.real, spot.imag, 0.1, 0.045, u(0, 180))
    yield disc((205, 150, 90), 0, 0, hole + 0.08)
    yield disc(None, 0, 0, hole)


# ---- plants and sky --------------------------------------------------------------------------------------------------


@_noun("green", "green", "green", "orange")
def tree(u: Dice, crown: RGB) -> Iterator[Part]:
    trunk, r = u(0.12, 0.2), u(0.42, 0.52)
    yield polygon(u.color("brown"), -trunk, 0, trunk, 0, trunk + 0.06, 1, -trunk - 0.06, 1)
    yield disc(tint(crown, -0.12), -0.42, -0.05, r)
    yield disc(tint(crown, -0.06), 0.42, -0.05, r)
    yield disc(crown, u(-0.1, 0.1), -0.45, r + 0.08)


@_noun("green")
def cactus(u: Dice, flesh: RGB) -> Iterator[Part]:
    w, left, right = u(0.22, 0.28), u(-0.1, 0.2), u(-0.2, 0.15)
    for side, y, top in ((-1, left, u(-0.5, -0.35)), (1, right, u(-0.6, -0.45))):
        yield line(flesh, 0.26, 0, y, side * 0.75, y)
        yield line(flesh, 0.26, side * 0.63, y + 0.1, side * 0.63, top)
        yield disc(flesh, side * 0.63, top, 0.13)
    yield rect(flesh, -w, -0.75, w, 0.6)
    yield chord(flesh, 0, -0.74, w, 0.26)
    yield line(tint(flesh, 0.3), 0.06, 0, -0.7, 0, 0.5)
    yield polygon((190, 95, 55), -0.5, 0.5, 0.5, 0.5, 0.36, 1, -0.36, 1)


@_noun("red", "pink", "purple", "white", "orange")
def flower(u: Dice, petal: RGB) -> Iterator[Part]:
    petals, r, stem = int(u(5, 8)), u(0.22, 0.27), u.color("green")
    yield line(stem, 0.12, 0, -0.3, u(-0.12, 0.12), 1)
    yield ellipse(stem, 0.28, 0.62, 0.3, 0.12, u(-40, -20))
    for k in range(petals):
        spot = 0.38 * np.exp(2j * np.pi * k / petals)
        yield disc(petal, spot.real, spot.imag - 0.35, r + 0.4 / petals)
    yield disc(GOLD, 0, -0.35, u(0.2, 0.28))


@_noun("green", "green", "orange", "red")
def leaf(u: Dice, blade: RGB) -> Iterator[Part]:
    w, vein = u(0.5, 0.68), tint(blade, -0.35)
    yield line(vein, 0.1, 0, 0.5, u(-0.1, 0.1), 1.1)
    yield polygon(blade, 0, -1, 0.55 * w, -0.6, w, 0, 0.75 * w, 0.45, 0, 0.75, -0.75 * w, 0.45, -w, 0, -0.55 * w, -0.6)
    yield line(vein, 0.07, 0, -0.75, 0, 0.7)
    for y in (-0.3, 0.05, 0.4):
        yield line(vein, 0.05, 0, y, 0.6 * w, y - 0.25)
        yield line(vein, 0.05, 0, y, -0.6 * w, y - 0.25)


@_noun("yellow", "yellow", "orange")
def sun(u: Dice, light: RGB) -> Iterator[Part]:
    yield burst(tint(light, -0.06), 0, 0, 1, u(0.58, 0.68), int(u(9, 14)), u(0, 90))
    yield disc(tint(light, 0.25), 0, 0, u(0.48, 0.58))


@_noun("yellow", "yellow", "white")
def moon(u: Dice, light: RGB) -> Iterator[Part]:
    back, belly = _sweep(0, 0, 1, 1, 50, 310), _sweep(0.64, 0, u(0.75, 1.05), 0.77, 270, 90)
    yield Part(light, np.concatenate((back, belly)))
    yield disc(tint(light, -0.15), -0.66, u(-0.35, -0.1), 0.13)
    yield disc(tint(light, -0.15), -0.5, u(0.4, 0.55), 0.1)


@_noun("white", "white", "gray")
def cloud(u: Dice, vapor: RGB) -> Iterator[Part]:
    yield disc(tint(vapor, -0.06), -0.55, 0.15, u(0.36, 0.44))
    yield disc(tint(vapor, -0.06), 0.6, 0.18, u(0.32, 0.42))
    yield disc(vapor, -0.15, -0.15, u(0.45, 0.55))
    yield disc(vapor, 0.3, -0.05, u(0.38, 0.48))
    yield rect(vapor, -0.6, 0.1, 0.62, 0.56)


@_noun("yellow", "orange", "red", "blue")
def star(u: Dice, paint: RGB) -> Iterator[Part]:
    inner = u(0.4, 0.48)
    yield burst(paint, 0, 0, 1, inner, 5)
    yield burst(tint(paint, 0.25), 0, 0, 0.6, 0.6 * inner, 5)


# ---- animals ---------------------------------------------------------------------------------------------------------


@_noun("blue", "orange", "red", "purple", "gray")
def fish(u: Dice, scales: RGB) -> Iterator[Part]:
    h, tail = u(0.42, 0.58), u(0.35, 0.5)
    yield polygon(tint(scales, -0.2), 0.35, 0, 1, -tail, 0.85, 0, 1, tail)
    yield polygon(tint(scales, -0.2), -0.4, -0.7 * h, 0.25, -h - 0.25, 0.3, -0.6 * h)
    yield ellipse(scales, -0.25, 0, 0.75, h)
    yield ellipse(tint(scales, 0.35), -0.05, 0.1, 0.22, 0.12, 25)
    yield disc(WHITE, -0.62, -0.12, 0.15)
    yield disc(BLACK, -0.64, -0.12, 0.085)


@_noun("blue", "red", "yellow", "gray")
def bird(u: Dice, feathers: RGB) -> Iterator[Part]:
    h, wing = u(0.42, 0.52), tint(feathers, u(0.3, 0.5))
    for x in (-0.12, 0.12):
        yield line(BEAK, 0.08, x, 0.4, x + 0.06, 0.98)
    yield polygon(tint(feathers, -0.25), -0.5, 0.05, -1.15, -0.3, -1.05, 0.3, -0.5, 0.4)
    yield polygon(BEAK, 0.7, -0.6, 1.1, -0.42, 0.7, -0.3)
    yield ellipse(feathers, -0.05, 0.15, 0.68, h, -12)
    yield disc(feathers, 0.48, -0.42, u(0.32, 0.38))
    yield ellipse(wing, -0.2, 0.1, 0.38, 0.2, u(10, 30))
    yield disc(BLACK, 0.55, -0.48, 0.08)


@_noun("orange", "black", "gray", "brown")
def cat(u: Dice, fur: RGB) -> Iterator[Part]:
    ear, w = u(0.9, 1.05), u(0.8, 0.92)
    for side in (-1, 1):
        yield polygon(fur, side * 0.15, -0.5, side * w * 0.9, -ear, side * w, 0.1)
        yield polygon((240, 160, 170), side * 0.4, -0.5, side * w * 0.8, -0.8 * ear, side * w * 0.85, -0.2)
    yield ellipse(fur, 0, 0.12, w, 0.7)
    for side in (-1, 1):
        yield ellipse((190, 225, 90), side * 0.36, -0.02, 0.17, 0.19)
        yield ellipse(BLACK, side * 0.36, -0.02, 0.06, 0.17)
        for y in (0.3, 0.48):
            yield line(tint(fur, 0.7), 0.045, side * 0.3, 0.36, side * 1.02, y)
    yield polygon((240, 130, 150), -0.13, 0.24, 0.13, 0.24, 0, 0.42)


@_noun("brown", "white", "yellow")
def dog(u: Dice, fur: RGB) -> Iterator[Part]:
    ears, droop = (u.color("brown", "black") if sum(fur) > 550 else tint(fur, -0.5)), u(0.45, 0.6)
    yield ellipse(fur, 0, 0, u(0.66, 0.76), 0.85)
    for side in (-1, 1):
        yield ellipse(ears, side * 0.8, 0.0, 0.27, droop, -side * 12)
        yield disc(BLACK, side * 0.28, -0.2, 0.12)
    yield ellipse(tint(fur, 0.6), 0, 0.4, 0.45, 0.36)
    yield ellipse((235, 100, 120), 0, u(0.68, 0.78), 0.17, 0.26)
    yield ellipse(BLACK, 0, 0.28, 0.22, 0.15)


@_noun("green")
def frog(u: Dice, skin: RGB) -> Iterator[Part]:
    apart, w = u(0.48, 0.6), u(0.88, 1)
    for side in (-1, 1):
        yield disc(skin, side * apart, -0.5, 0.34)
    yield ellipse(skin, 0, 0.15, w, 0.68)
    yield from _eyes(0, -0.52, apart, 0.23)
    yield arc(tint(skin, -0.65), 0, 0.1, 0.66 + 0.48j, 0.62 + 0.36j, 10, 170)
    yield ellipse(tint(skin, 0.35), 0, 0.68, 0.4, 0.12)


@_noun("black")
def penguin(u: Dice, coat: RGB) -> Iterator[Part]:
    w, flap = u(0.55, 0.66), u(15, 35)
    for side in (-1, 1):
        yield ellipse(BEAK, side * 0.3, 0.95, 0.27, 0.12)
        yield ellipse(coat, side * w, 0.15, 0.16, 0.48, -side * flap)
    yield ellipse(coat, 0, 0, w, 0.95)
    yield ellipse(WHITE, 0, 0.3, 0.72 * w, 0.58)
    yield from _eyes(0, -0.5, 0.2, 0.15)
    yield polygon(BEAK, -0.16, -0.38, 0.16, -0.38, 0, -0.1)


@_noun("brown", "brown", "gray")
def owl(u: Dice, plumes: RGB) -> Iterator[Part]:
    r = u(0.3, 0.36)
    for side in (-1, 1):
        yield polygon(plumes, side * 0.1, -0.7, side * 0.68, -1.05, side * 0.7, -0.2)
        yield line(BEAK, 0.18, side * 0.22, 0.8, side * 0.26, 1.05)
    yield ellipse(plumes, 0, 0.05, u(0.7, 0.78), 0.88)
    yield ellipse(tint(plumes, 0.55), 0, 0.45, 0.42, 0.42)
    for side in (-1, 1):
        yield ellipse(tint(plumes, -0.3), side * 0.66, 0.3, 0.18, 0.5, side * 10)
        yield disc((252, 215, 90), side * 0.33, -0.35, r)
        yield disc(BLACK, side * 0.33, -0.35, 0.5 * r)
    yield polygon(BEAK, -0.12, -0.22, 0.12, -0.22, 0, 0.1)


@_noun("green", "brown")
def turtle(u: Dice, shell: RGB) -> Iterator[Part]:
    skin, dome = (130, 190, 90) if shell[1] < 95 else (215, 190, 110), u(0.75, 0.9)
    for x in (-0.45, 0.35):
        yield ellipse(skin, x, 0.5, 0.17, 0.26)
    yield polygon(skin, -0.7, 0.2, -1.0, 0.42, -0.6, 0.42)
    yield ellipse(skin, 0.85, u(-0.15, 0.05), 0.28, 0.24)
    yield disc(BLACK, 0.93, -0.1, 0.06)
    yield chord(shell, -0.05, 0.4, 0.8, dome)
    for x, y in ((-0.45, 0.15), (-0.05, -0.1), (0.35, 0.15)):
        yield burst(tint(shell, 0.3), x, y, 0.18, 0.16, 3)
    yield rect(tint(shell, -0.3), -0.85, 0.32, 0.75, 0.45)


@_noun("brown", "orange", "pink", "purple")
def snail(u: Dice, shell: RGB) -> Iterator[Part]:
    body = (225, 205, 130)
    for x in (0.68, 0.92):
        yield line(body, 0.08, 0.75, 0.2, x, u(-0.6, -0.45))
        yield disc(BLACK, x, -0.52, 0.08)
    yield ellipse(body, 0, 0.68, 1.0, 0.2)
    yield ellipse(body, 0.75, 0.25, 0.24, 0.5)
    for r, shift, shade in ((0.68, 0, 0.0), (0.48, 0.06, -0.4), (0.38, 0.06, 0.1), (0.2, 0.1, -0.4), (0.1, 0.1, 0.2)):
        yield disc(tint(shell, shade), -0.2 + shift, 0.02 + shift, r * u(0.94, 1))


@_noun("yellow")
def bee(u: Dice, fur: RGB) -> Iterator[Part]:
    lift, h = u(15, 40), u(0.42, 0.52)
    yield polygon(BLACK, 0.75, 0.05, 1.1, 0.2, 0.75, 0.35)
    yield ellipse((215, 238, 250), -0.18, -0.42, 0.24, 0.45, -lift)
    yield ellipse((195, 225, 245), 0.2, -0.42, 0.24, 0.45, lift)
    yield disc(BLACK, -0.75, 0.15, 0.28)
    yield ellipse(fur, 0.1, 0.2, 0.78, h)
    for x in (-0.2, 0.15, 0.5):
        reach = h * (1 - ((x - 0.1) / 0.78) ** 2) ** 0.5
        yield rect(BLACK, x - 0.08, 0.2 - reach, x + 0.1, 0.2 + reach)
    yield disc(WHITE, -0.82, 0.08, 0.08)


@_noun("red")
def ladybug(u: Dice, wings: RGB) -> Iterator[Part]:
    w, spot = u(0.74, 0.85), u(0.13, 0.17)
    for side in (-1, 1):
        yield line(BLACK, 0.07, 0, -0.6, side * 0.45, -1.05)
        for y in (-0.15, 0.25, 0.6):
            yield line(BLACK, 0.08, 0, 0.2, side * (w + 0.2), y)
    yield chord(BLACK, 0, -0.5, 0.5, 0.4)
    yield ellipse(wings, 0, 0.2, w, 0.78)
    yield line(BLACK, 0.09, 0, -0.55, 0, 0.97)
    for side in (-1, 1):
        for x, y in ((0.35, -0.15), (0.48, 0.28), (0.28, 0.65)):
            yield disc(BLACK, side * x, y, spot)


@_noun("orange", "blue", "purple", "pink", "yellow")
def butterfly(u: Dice, wing: RGB) -> Iterator[Part]:
    high, low, patch = u(0.42, 0.52), u(0.32, 0.4), tint(wing, u(0.45, 0.65))
    for side in (-1, 1):
        yield line(BLACK, 0.06, 0, -0.5, side * 0.32, -1.0)
        yield ellipse(tint(wing, -0.25), side * 0.42, 0.45, low, 0.38, side * 30)
        yield ellipse(wing, side * 0.54, -0.28, high, 0.48, side * 35)
        yield disc(patch, side * 0.6, -0.34, 0.2)
        yield disc(patch, side * 0.45, 0.48, 0.13)
    yield ellipse(BLACK, 0, 0, 0.12, 0.65)


# ---- vehicles and buildings ------------------------------------------------------------------------------------------


def _wheels(y: float, r: float, *xs: float) -> Iterator[Part]:
    for x in xs:
        yield disc(BLACK, x, y, r)
        yield disc(STEEL, x, y, 0.45 * r)


@_noun("red", "blue", "yellow", "green", "white", "gray", "purple")
def car(u: Dice, paint: RGB) -> Iterator[Part]:
    roof, front = u(-0.58, -0.45), u(0.45, 0.58)
    yield polygon(paint, -0.75, 0, -0.45, roof, 0.25, roof, front + 0.1, 0)
    yield polygon(GLASS, -0.55, -0.02, -0.36, roof + 0.12, -0.12, roof + 0.12, -0.12, -0.02)
    yield polygon(GLASS, -0.02, -0.02, -0.02, roof + 0.12, 0.19, roof + 0.12, front - 0.06, -0.02)
    yield polygon(paint, -1, 0, 0.85, 0, 1, 0.15, 1, 0.45, -1, 0.45)
    yield rect(GOLD, 0.85, 0.1, 1, 0.22)
    yield from _wheels(0.45, u(0.2, 0.26), -0.52, 0.52)


@_noun("red", "yellow", "blue", "green", "orange")
def bus(u: Dice, paint: RGB) -> Iterator[Part]:
    top, glass = u(-0.72, -0.6), tint(GLASS, u(-0.2, 0.4))
    yield rect(paint, -1, top, 1, 0.55)
    for x in (-0.88, -0.42, 0.04, 0.5):
        yield rect(glass, x, top + 0.14, x + 0.36, -0.08)
    yield rect(tint(paint, -0.3), -1, 0.1, 1, 0.2)
    yield from _wheels(0.55, u(0.2, 0.25), -0.58, 0.58)


@_noun("red", "green", "blue", "black")
def train(u: Dice, paint: RGB) -> Iterator[Part]:
    cab, trim = u(-0.85, -0.7), u.color("red", "yellow")
    yield rect(tint(paint, -0.2), 0.5, -0.75, 0.74, -0.1)
    yield rect(trim, 0.42, -0.85, 0.82, -0.68)
    yield rect(paint, -0.3, -0.25, 0.95, 0.4)
    yield rect(paint, -0.95, cab, -0.15, 0.4)
    yield rect(GLASS, -0.75, cab + 0.18, -0.35, -0.18)
    yield rect(tint(paint, -0.4), -1.05, cab - 0.12, -0.05, cab + 0.03)
    yield polygon(STEEL, 0.9, 0.2, 1.2, 0.6, 0.9, 0.6)
    yield rect(trim, -1, 0.3, 1, 0.45)
    yield from _wheels(0.55, 0.26, -0.6)
    yield from _wheels(0.6, 0.2, 0.05, 0.55)


@_noun("red", "blue", "brown", "white")
def boat(u: Dice, hull: RGB) -> Iterator[Part]:
    mast, low = u(-0.12, 0.05), u(0.45, 0.58)
    yield polygon(WHITE, mast + 0.08, -0.95, mast + 0.08, 0.28, u(0.72, 0.9), 0.28)
    yield polygon(u.color("red", "yellow", "orange", "blue"), mast - 0.08, -0.75, mast - 0.08, 0.28, -0.7, 0.28)
    yield line(WOOD, 0.09, mast, -1, mast, 0.5)
    yield polygon(hull, -0.95, 0.38, 0.95, 0.38, low, 0.92, -low, 0.92)
    yield polygon(tint(hull, 0.35), -0.95, 0.38, 0.95, 0.38, 0.85, 0.5, -0.85, 0.5)


@_noun("white", "white", "gray", "red", "blue")
def airplane(u: Dice, paint: RGB) -> Iterator[Part]:
    trim, tip, span = u.color("blue", "red", "orange"), u(-0.6, -0.4), u(0.85, 1)
    for side in (-1, 1):
        yield polygon(tint(paint, -0.2), 0.35, side * 0.1, tip, side * span, tip - 0.2, side * span, -0.25, 0)
        yield polygon(trim, -0.65, 0, -0.95, side * 0.42, -1.1, side * 0.42, -0.98, 0)
    yield ellipse(paint, 0, 0, 1.05, 0.18)
    yield ellipse(paint, -0.1, 0, 0.8, 0.2)
    yield ellipse(GLASS, 0.82, 0, 0.12, 0.1)
    yield line(trim, 0.08, -0.95, 0, -0.5, 0)


@_noun("white", "gray", "white")
def rocket(u: Dice, body: RGB) -> Iterator[Part]:
    trim, w = u.color("red", "blue", "orange"), u(0.3, 0.38)
    yield polygon((255, 190, 50), -0.2, 0.7, 0.2, 0.7, 0, u(1.1, 1.3))
    for side in (-1, 1):
        yield polygon(trim, side * 0.8 * w, 0.1, side * (w + 0.35), 0.85, side * 0.6 * w, 0.68)
    yield ellipse(body, 0, -0.1, w, 0.92)
    yield chord(trim, 0, -0.1, w, 0.92, 218, 322)
    yield disc(tint(trim, -0.35), 0, -0.15, 0.19)
    yield disc(GLASS, 0, -0.15, 0.13)


@_noun("red", "blue", "green", "black")
def bicycle(u: Dice, frame: RGB) -> Iterator[Part]:
    r = u(0.42, 0.48)
    for x in (-0.58, 0.58):
        yield disc(BLACK, x, 0.3, r)
        yield disc(None, x, 0.3, r - 0.12)
        yield disc(STEEL, x, 0.3, 0.08)
    corners = ((-0.58, 0.3), (-0.2, -0.3), (0.4, -0.3), (-0.02, 0.3), (-0.58, 0.3))
    for (x0, y0), (x1, y1) in pairwise(corners):
        yield line(frame, 0.13, x0, y0, x1, y1)
    yield line(frame, 0.13, -0.25, -0.5, -0.02, 0.3)
    yield line(frame, 0.13, 0.34, -0.6, 0.58, 0.3)
    yield line(BLACK, 0.13, -0.45, -0.52, -0.08, -0.52)
    yield line(BLACK, 0.12, 0.15, u(-0.72, -0.62), 0.5, -0.6)


@_noun("yellow", "white", "pink", "blue", "red")
def house(u: Dice, wall: RGB) -> Iterator[Part]:
    roof, eave = u.color("red", "brown", "gray", "blue"), u(-0.25, -0.1)
    yield rect(roof, 0.3, -0.85, 0.5, -0.3)
    yield rect(wall, -0.75, eave, 0.75, 1)
    yield polygon(roof, -1, eave, 0, u(-1, -0.85), 1, eave)
    yield rect(u.color("brown", "red", "blue"), -0.17, 0.4, 0.17, 1)
    for x in (-0.6, 0.3):
        yield rect(tint(GLASS, -0.15), x, 0.08, x + 0.3, 0.4)


@_noun("green", "orange", "blue", "red")
def tent(u: Dice, cloth: RGB) -> Iterator[Part]:
    door, peak = u(0.24, 0.36), u(-0.8, -0.65)
    yield line(WOOD, 0.07, -0.08, peak - 0.15, 0.12, peak + 0.2)
    yield line(WOOD, 0.07, 0.08, peak - 0.15, -0.12, peak + 0.2)
    yield polygon(cloth, -1.05, 0.75, 0, peak, 1.05, 0.75)
    yield polygon(tint(cloth, 0.3), 0, peak, -0.5, 0.75, 0.5, 0.75)
    yield polygon(tint(cloth, -0.75), 0, peak + 0.35, -door, 0.75, door, 0.75)


# ---- figures and things ----------------------------------------------------------------------------------------------


@_noun("white")
def snowman(u: Dice, snow: RGB) -> Iterator[Part]:
    scarf, r = u.color("red", "blue", "green"), u(0.5, 0.57)
    for side in (-1, 1):
        yield line(WOOD, 0.08, side * 0.35, 0.25, side * 0.9, u(-0.25, 0.05))
    yield disc(tint(snow, -0.05), 0, 0.5, r)
    yield disc(snow, 0, -0.32, 0.37)
    yield rect(scarf, -0.36, -0.1, 0.36, 0.07)
    yield rect(scarf, 0.1, -0.05, 0.27, 0.38)
    yield rect(BLACK, -0.5, -0.72, 0.5, -0.6)
    yield rect(BLACK, -0.3, u(-1.1, -1), 0.3, -0.65)
    for x, y in ((-0.14, -0.42), (0.14, -0.42), (0, 0.35), (0, 0.6)):
        yield disc(BLACK, x, y, 0.06)
    yield polygon(BEAK, 0, -0.35, 0.42, -0.26, 0, -0.22)


@_noun("white")
def ghost(u: Dice, sheet: RGB) -> Iterator[Part]:
    w, lift = u(0.62, 0.75), u(-0.1, 0.1)
    for side in (-1, 1):
        yield ellipse(sheet, side * w, 0.15 + side * lift, 0.18, 0.3, side * 50)
    yield chord(sheet, 0, -0.2, w, 0.78)
    hem = [(w * (1 - k / 3), 0.95 if k % 2 == 0 else 0.65) for k in range(7)]
    yield polygon(sheet, -w, -0.25, w, -0.25, *(value for corner in hem for value in corner))
    for side in (-1, 1):
        yield ellipse(BLACK, side * 0.25, -0.32, 0.13, 0.19)
    yield ellipse(BLACK, 0, 0.15, 0.15, u(0.14, 0.22))


@_noun("gray", "gray", "blue", "green")
def robot(u: Dice, metal: RGB) -> Iterator[Part]:
    trim, dark = u.color("red", "yellow", "orange"), tint(metal, -0.35)
    yield line(dark, 0.07, 0, -0.7, 0, -1)
    yield disc(trim, 0, -1.02, 0.11)
    for side in (-1, 1):
        yield rect(dark, side * 0.2, 0.6, side * 0.42, 1)
        yield line(dark, 0.18, side * 0.5, 0.1, side * 0.82, u(-0.1, 0.5))
    yield rect(tint(metal, 0.2), -0.48, -0.75, 0.48, -0.12)
    for side in (-1, 1):
        yield disc(trim, side * 0.22, -0.5, 0.14)
        yield disc(BLACK, side * 0.22, -0.5, 0.06)
    yield rect(BLACK, -0.25, -0.3, 0.25, -0.2)
    yield rect(metal, -0.6, -0.05, 0.6, 0.7)
    yield rect(dark, -0.35, 0.1, 0.35, 0.5)
    yield disc(trim, -0.15, 0.3, 0.1)
    yield disc(GLASS, 0.15, 0.3, 0.1)


@_noun("red", "red", "pink", "purple")
def heart(u: Dice, paint: RGB) -> Iterator[Part]:
    yield Part(paint, _HEART * u(0.95, 1.05))
    yield ellipse(tint(paint, 0.55), -0.45, -0.42, u(0.12, 0.18), 0.2, 35)


@_noun("blue", "red", "white", "green", "purple")
def cup(u: Dice, glaze: RGB) -> Iterator[Part]:
    low = u(0.45, 0.58)
    yield arc(tint(glaze, -0.15), 0.6, 0.05, 0.45 + 0.45j, 0.25 + 0.25j, -100, 110)
    yield polygon(glaze, -0.7, -0.55, 0.7, -0.55, low, 0.85, -low, 0.85)
    yield ellipse(tint(glaze, 0.35), 0, -0.55, 0.7, 0.2)
    yield ellipse((105, 62, 32), 0, -0.53, 0.58, 0.14)
    yield rect(tint(glaze, 0.35), -0.5, u(0.1, 0.25), 0.5, 0.38)


@_noun("red", "blue", "purple", "pink", "yellow")
def umbrella(u: Dice, cloth: RGB) -> Iterator[Part]:
    tall = u(0.75, 0.9)
    yield line(BLACK, 0.1, 0, -1, 0, 0.8)
    yield arc(BLACK, 0.17, 0.75, 0.22 + 0.24j, 0.12 + 0.14j, 0, 180)
    yield chord(cloth, 0, 0, 1, tall)
    yield chord(tint(cloth, 0.35), 0, 0, 0.36, tall)
    for x in (-0.68, 0, 0.68):
        yield ellipse(None, x, 0.02, 0.32, 0.14)
    yield line(BLACK, 0.1, 0, 0, 0, 0.8)


@_noun("yellow", "gray", "orange")
def key(u: Dice, metal: RGB) -> Iterator[Part]:
    r, bit = u(0.36, 0.44), u(0.3, 0.42)
    yield line(metal, 0.2, -0.3, 0, 1, 0)
    for x in (0.6, 0.9):
        yield rect(metal, x - 0.11, 0, x + 0.08, bit)
    yield disc(metal, -0.58, 0, r)
    yield disc(None, -0.62, 0, 0.5 * r)


@_noun("red", "blue", "pink", "green", "purple", "yellow")
def balloon(u: Dice, rubber: RGB) -> Iterator[Part]:
    w, tail = u(0.58, 0.68), u(-0.2, 0.2)
    yield line((90, 90, 96), 0.06, 0, 0.5, tail, 1.2)
    yield ellipse(rubber, 0, -0.3, w, 0.78)
    yield polygon(tint(rubber, -0.2), 0, 0.42, -0.14, 0.62, 0.14, 0.62)
    yield ellipse(tint(rubber, 0.65), -0.25, -0.6, 0.12, 0.22, 25)


@_noun("yellow", "red", "blue", "green")
def pencil(u: Dice, paint: RGB) -> Iterator[Part]:
    w, grip = u(0.17, 0.22), u(0.5, 0.6)
    yield rect(paint, -0.75, -w, grip, w)
    yield rect(tint(paint, 0.35), -0.75, -w, grip, -0.35 * w)
    yield rect(STEEL, -0.8, -w, -0.66, w)
    yield rect((245, 145, 165), -1, -w, -0.8, w)
    yield polygon((240, 205, 155), grip, -w, 1.05, 0, grip, w)
    yield polygon(BLACK, 0.85, -0.38 * w, 1.05, 0, 0.85, 0.38 * w)


@_noun("white")
def clock(u: Dice, face: RGB) -> Iterator[Part]:
    yield disc(u.color("red", "blue", "black", "brown", "green"), 0, 0, 1)
    yield disc(face, 0, 0, u(0.76, 0.84))
    for x, y in ((0, -0.62), (0.62, 0), (0, 0.62), (-0.62, 0)):
        yield disc(BLACK, x, y, 0.07)
    for length, width in ((0.58, 0.09), (0.38, 0.13)):
        angle = u(0, 2 * np.pi)
        yield line(BLACK, width, 0, 0, length * np.cos(angle), length * np.sin(angle))
    yield disc(BLACK, 0, 0, 0.09)


@_noun("brown", "orange", "red")
def guitar(u: Dice, wood: RGB) -> Iterator[Part]:
    neck, waist = tint(WOOD, -0.35), u(0.3, 0.36)
    yield rect(neck, -0.08, -0.95, 0.08, 0.1)
    yield rect(tint(neck, -0.3), -0.15, -1.2, 0.15, -0.9)
    yield ellipse(wood, 0, 0.05, waist, 0.32)
    yield ellipse(wood, 0, 0.6, u(0.44, 0.52), 0.42)
    yield disc(BLACK, 0, 0.28, 0.15)
    yield rect(neck, -0.2, 0.7, 0.2, 0.8)
    yield line(CREAM, 0.04, 0, -0.9, 0, 0.72)


@_noun("brown", "black", "gray", "red")
def television(u: Dice, case: RGB) -> Iterator[Part]:
    for x in (u(-0.5, -0.35), u(0.35, 0.5)):
        yield line(tint(case, -0.3), 0.07, 0, -0.5, x, -1)
    yield rect(case, -1, -0.55, 1, 0.8)
    yield rect(tint(GLASS, u(-0.3, 0.2)), -0.8, -0.34, 0.42, 0.58)
    yield polygon(tint(GLASS, 0.55), -0.66, -0.34, -0.35, -0.34, -0.8, 0.26, -0.8, -0.04)
    for y in (-0.2, 0.15):
        yield disc(CREAM, 0.75, y, 0.12)
    for x in (-0.65, 0.65):
        yield rect(tint(case, -0.3), x - 0.1, 0.8, x + 0.1, 0.95)


@_noun("yellow")
def crown(u: Dice, gold: RGB) -> Iterator[Part]:
    tip, dip = u(-0.75, -0.6), u(-0.05, 0.1)
    yield polygon(gold, -0.9, 0.7, -1, tip + 0.2, -0.5, dip, 0, tip, 0.5, dip, 1, tip + 0.2, 0.9, 0.7)
    for side, point in ((-1, tip + 0.2), (0, tip), (1, tip + 0.2)):
        yield disc(u.color("red", "blue"), side, point, 0.14)
    yield rect(tint(gold, -0.25), -0.92, 0.42, 0.92, 0.75)
    for x in (-0.55, 0, 0.55):
        yield disc(u.color("red", "blue", "green"), x, 0.58, 0.1)


@_noun("brown", "gray", "yellow")
def ladder(u: Dice, wood: RGB) -> Iterator[Part]:
    top = u(0.3, 0.42)
    for y in (-0.75, -0.38, 0, 0.38, 0.75):
        reach = 0.42 + (y - 1) * (0.42 - top) / 2
        yield rect(tint(wood, 0.25), -reach, y - 0.07, reach, y + 0.07)
    for side in (-1, 1):
        yield line(wood, 0.15, side * top, -1, side * 0.45, 1)


@_noun("red", "blue", "green", "white", "yellow", "purple")
def shirt(u: Dice, cloth: RGB) -> Iterator[Part]:
    hem, cuff, sleeve = u(0.5, 0.6), u(0.0, 0.2), tint(cloth, -0.12)
    for side in (-1, 1):
        yield polygon(sleeve, side * 0.4, -0.8, side, cuff - 0.2, side * 0.72, cuff, side * 0.4, -0.25)
    yield polygon(cloth, -0.5, -0.85, 0.5, -0.85, 0.55, 0, hem, 0.9, -hem, 0.9, -0.55, 0)
    yield chord(None, 0, -0.86, 0.24, 0.24, 0, 180)
    stripe = u(0, 0.3)
    yield rect(tint(cloth, 0.55 if sum(cloth) < 600 else -0.4), -0.52, stripe, 0.52, stripe + 0.18)


@_noun("red", "blue", "green", "purple", "pink")
def sock(u: Dice, wool: RGB) -> Iterator[Part]:
    w, toe, trim = u(0.3, 0.36), u(0.55, 0.75), tint(wool, 0.65)
    yield disc(trim, toe, 0.62, 0.33)
    yield rect(wool, -0.1, 0.29, toe, 0.95)
    yield disc(trim, -0.2, 0.62, 0.34)
    yield rect(wool, -2 * w + 0.1, -0.8, 0.1, 0.62)
    yield rect(trim, -2 * w + 0.06, -1, 0.14, -0.75)
    for y in (-0.5, u(-0.2, -0.1)):
        yield rect(trim, -2 * w + 0.1, y, 0.1, y + 0.13)


@_noun("blue", "gray", "black")
def anchor(u: Dice, iron: RGB) -> Iterator[Part]:
    reach = u(0.75, 0.85)
    yield disc(iron, 0, -0.8, 0.25)
    yield disc(None, 0, -0.8, 0.11)
    yield line(iron, 0.18, -0.45, -0.38, 0.45, -0.38)
    yield line(iron, 0.2, 0, -0.6, 0, 0.85)
    yield arc(iron, 0, 0.15, complex(reach, 0.8), complex(reach - 0.17, 0.58), 5, 175)
    for side in (-1, 1):
        yield polygon(iron, side * (reach - 0.35), 0.3, side * (reach + 0.02), -0.12, side * (reach + 0.2), 0.38)


@_noun("blue", "red", "green", "brown", "purple")
def book(u: Dice, cover: RGB) -> Iterator[Part]:
    rise, page = u(0.12, 0.25), (245, 243, 235)
    for side in (-1, 1):
        yield polygon(cover, 0, -0.5, side * 1.05, -0.5 - rise, side * 1.05, 0.75 - rise, 0, 0.8)
        yield polygon(page, 0, -0.34, side * 0.82, -0.34 - rise, side * 0.82, 0.5 - rise, 0, 0.55)
        for y in (-0.14, 0.06, 0.26):
            yield line((165, 165, 175), 0.06, side * 0.18, y - 0.04, side * 0.68, y - 0.8 * rise)
    yield line(tint(cover, -0.4), 0.07, 0, -0.5, 0, 0.78)


@_noun("brown", "red", "orange", "blue")
def hammer(u: Dice, grip: RGB) -> Iterator[Part]:
    w, steel = u(0.13, 0.17), tint(STEEL, u(-0.2, 0.1))
    yield polygon(grip, -w, -0.5, w, -0.5, w + 0.05, 1.05, -w - 0.05, 1.05)
    yield rect(steel, -0.4, -0.88, 0.4, -0.5)
    yield rect(tint(steel, -0.3), -0.62, -0.95, -0.38, -0.43)
    yield polygon(tint(steel, -0.15), 0.38, -0.88, u(0.75, 0.9), -0.4, 0.38, -0.55)


@_noun("white", "red", "pink", "purple", "green")
def candle(u: Dice, wax: RGB) -> Iterator[Part]:
    w, top = u(0.22, 0.3), u(-0.3, -0.15)
    yield ellipse((250, 140, 40), 0, top - 0.42, 0.2, 0.34)
    yield ellipse((255, 232, 110), 0, top - 0.32, 0.11, 0.2)
    yield line(BLACK, 0.06, 0, top, 0, top - 0.2)
    yield rect(wax, -w, top, w, 0.85)
    yield ellipse(tint(wax, -0.15), 0, top, w, 0.07)
    yield ellipse(tint(wax, -0.15), 0.5 * w, top + 0.2, 0.07, u(0.15, 0.25))
    yield ellipse(u.color("yellow", "brown", "gray"), 0, 0.9, u(0.5, 0.62), 0.15)


@_noun("brown", "brown", "red", "blue")
def chair(u: Dice, wood: RGB) -> Iterator[Part]:
    back, dark = u(-1.05, -0.9), tint(wood, -0.3)
    for x in (-0.42, 0.6):
        yield rect(dark, x - 0.09, 0.1, x + 0.09, u(0.8, 0.9))
    for x in (-0.6, 0.42):
        yield rect(wood, x - 0.1, 0.1, x + 0.1, 1)
    for x in (-0.6, 0.12):
        yield rect(wood, x - 0.09, back, x + 0.09, 0.1)
    for top in (back + 0.05, -0.5):
        yield rect(tint(wood, 0.15), -0.6, top, 0.12, top + 0.25)
    yield polygon(tint(wood, 0.2), -0.72, 0.25, -0.55, -0.02, 0.72, -0.02, 0.6, 0.25)
