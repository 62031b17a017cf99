"""Drawn scenes to begin with, in which no single thing fills the picture."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ..scenes import draw_scene

_SIDE = 384  # pixels

# Seeds chosen by eye: four things apart from each other, on five kinds of ground.
_SCENES = (
    ("On wood", 705, ("cat", "car", "tree", "balloon")),
    ("On bricks", 116, ("dog", "house", "flower", "bird")),
    ("In the sky", 406, ("owl", "train", "sun", "rocket")),
    ("On sand", 504, ("bus", "bicycle", "boat", "umbrella")),
    ("At night", 315, ("apple", "banana", "mushroom", "cup")),
)


@dataclass(frozen=True)
class Sample:
    """A drawn picture that the page offers, with labels to compare."""

    name: str
    picture: Image.Image
    labels: tuple[str, ...]  # such as "a cat", in the order of `_SCENES`
    boxes: tuple[tuple[int, int, int, int], ...]  # of the thing of each label: x0, y0, x1, y1 in pixels


def samples() -> list[Sample]:
    """Draw the five scenes, in a fraction of a second."""
    return [_draw(*scene) for scene in _SCENES]


def _draw(name: str, seed: int, nouns: tuple[str, ...]) -> Sample:
    scene = draw_scene(seed, _SIDE, objects=(4, 4), nouns=nouns, scale=(0.35, 0.5), overlap=0.0)
    boxes = {region.noun: region.box for region in scene.regions}
    labels = tuple(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns)
    return Sample(name, Image.fromarray(scene.image), labels, tuple(boxes[noun] for noun in nouns))
