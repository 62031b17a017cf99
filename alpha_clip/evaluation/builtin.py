"""The built-in benchmark: drawn scenes in sets that no single way of looking wins."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..scenes import HELD_OUT, NOUNS, Scene, draw_scene
from .samples import Column, Naming, Referring, Sample, Task

SIZE = 144  # pixels of a side: three times what `tiny` sees, so that a crop shows more than the whole
FIRST_SEED = 8_000_000_000  # training draws below 4e9, the examples above 9e9
VALIDATION_SEED = 8_500_000_000  # for choosing options
TEMPLATES = ("a drawing of {}",)
QUICK = 10  # one scene in so many


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


NAMES = tuple(with_article(noun) for noun in NOUNS)


@dataclass(frozen=True)
class Set:
    """Scenes of one kind, and what is asked of them."""

    count: int
    questions: Callable[[Scene], Sequence[Naming | Referring]]
    drawn: dict[str, Any]  # how, for `draw_scene`


def nouns(scene: Scene) -> list[Naming | Referring]:
    """Which of all nouns is each object?"""
    return [Naming(k, NAMES, NOUNS.index(r.noun)) for k, r in enumerate(scene.regions)]


SETS: dict[str, Set] = {
    "plain": Set(120, nouns, {"objects": (2, 4)}),
    "single": Set(80, nouns, {"objects": (1, 1)}),
    "small": Set(100, nouns, {"objects": (2, 4), "scale": (0.1, 0.16)}),
    "outline": Set(100, nouns, {"objects": (2, 4), "style": "outline"}),
    "hatched": Set(100, nouns, {"objects": (2, 4), "style": "hatched"}),
    "held-out": Set(100, nouns, {"objects": (2, 4), "nouns": HELD_OUT}),
}


def sample(name: str, number: int, first_seed: int = FIRST_SEED) -> Sample:
    """Scene `number` of the set `name`; the same at all times."""
    chosen = SETS[name]
    seed = first_seed + 10_000_000 * list(SETS).index(name) + number
    scene = draw_scene(seed, SIZE, attributes=0.0, **chosen.drawn)
    questions = tuple(chosen.questions(scene))
    return Sample(f"{name} {number}", Image.fromarray(scene.image), scene.masks, questions, name)


def task(quick: bool = False, first_seed: int = FIRST_SEED, sets: Sequence[str] = tuple(SETS)) -> Task:
    """All sets, or every tenth scene of them."""
    step = QUICK if quick else 1
    numbered = [(name, i) for name in sets for i in range(0, SETS[name].count, step)]
    keys = [f"{name} {i}" for name, i in numbered]
    columns = [Column("all"), *(Column(name, (name,)) for name in sets)]
    identity = {"first seed": first_seed, "pixels": SIZE}
    return Task("scenes", keys, lambda i: sample(*numbered[i], first_seed), columns, TEMPLATES, identity)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one scene in ten, within a minute")


def from_arguments(args: argparse.Namespace, validation: bool = False) -> Task:
    return task(args.quick, VALIDATION_SEED if validation else FIRST_SEED)
