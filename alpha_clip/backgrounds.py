"""The backgrounds of the drawn scenes: gradients with a grain, and a word and a phrase for each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from .clipart import RGB


class _Background(NamedTuple):
    """A vertical gradient with a grain of random patches."""

    top: RGB
    bottom: RGB
    grain: tuple[int, int]  # patches down and across
    contrast: float  # of the grain, in grey levels
    color: str  # objects of this colour would be lost on it
    phrase: str


_ALL: dict[str, _Background] = {
    "grass": _Background((120, 175, 80), (75, 135, 50), (28, 20), 22, "green", "on grass"),
    "sky": _Background((105, 170, 232), (200, 228, 248), (5, 3), 14, "blue", "in the sky"),
    "sand": _Background((236, 218, 172), (215, 186, 132), (36, 36), 12, "yellow", "on sand"),
    "water": _Background((70, 145, 200), (35, 92, 158), (22, 4), 24, "blue", "on water"),
    "night": _Background((14, 14, 44), (44, 42, 88), (4, 3), 8, "black", "at night"),
    "paper": _Background((244, 238, 226), (232, 224, 208), (30, 30), 5, "white", "on paper"),
    "wood": _Background((178, 128, 82), (150, 102, 62), (26, 3), 20, "brown", "on wood"),
    "bricks": _Background((178, 92, 72), (152, 74, 58), (18, 9), 16, "red", "in front of bricks"),
}

BACKGROUNDS: dict[str, str] = {word: ground.phrase for word, ground in _ALL.items()}  # "night": "at night"


def pick(rng: np.random.Generator, colors: set[str]) -> str:
    """Choose a background on which no object of these colours would be lost, if there is one."""
    clear = [word for word, ground in _ALL.items() if ground.color not in colors]
    words = clear or list(_ALL)
    return words[int(len(words) * rng.random())]


def paint(word: str, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Paint a background, (H, W, 3) float32 in about 0..255."""
    ground = _ALL[word]
    hue = 10 * (2 * rng.random(3, dtype=np.float32) - 1)
    top, bottom = np.array(ground.top, np.float32) + hue, np.array(ground.bottom, np.float32) + hue
    grain = rng.integers(0, 256, ground.grain, dtype=np.uint8)
    relief = ground.contrast * (_enlarge(grain, height, width) / 127.5 - 1)
    if word == "night":
        relief += 0.9 * _enlarge(np.where(rng.random((64, 64)) > 0.993, np.uint8(255), np.uint8(0)), height, width)
    elif word == "wood":
        relief -= 40 * (np.arange(height) * 4.5 / height % 1 < 0.08)[:, None]
    elif word == "bricks":
        relief += _mortar(height, width)
    fall = np.arange(height, dtype=np.float32)[:, None] / height
    return (top + fall * (bottom - top))[:, None] + relief[..., None]  # (H, W, 3)


def _enlarge(field: np.ndarray, height: int, width: int) -> np.ndarray:
    """Stretch a coarse uint8 field to (H, W) float32 smoothly; in whole numbers, hence alike on any machine."""
    return np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)


def _mortar(height: int, width: int) -> np.ndarray:
    """Draw the joints of nine courses of bricks, (H, W) float32."""
    unit = min(height, width) / 9
    course = np.arange(height)[:, None] / unit
    along = np.arange(width) / (2 * unit) + 0.5 * (np.floor(course) % 2)
    return np.where((course % 1 < 0.14) | (along % 1 < 0.07), np.float32(50), np.float32(0))


def restyle(canvas: np.ndarray, style: str) -> np.ndarray:
    """Make the background pale under outlines, grey under hatching."""
    if style == "outline":
        return 0.2 * canvas + 0.8 * 250
    if style == "hatched":
        gray: np.ndarray = canvas.mean(axis=2, keepdims=True)  # (H, W, 1)
        return 0.12 * canvas + 0.88 * (60 + 0.7 * gray)
    return canvas
