"""The built-in benchmark: a thousand drawn scenes in sets, no one way of looking best in all. Needs no network."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from PIL import Image

from ..scenes import BACKGROUNDS, HELD_OUT, NOUNS, Region, Scene, draw_scene, relation, with_article
from .samples import Column, Naming, Referring, Sample, Task

SIZE = 144  # pixels a side: three times the input of `tiny`, so that a crop shows more of an object than the whole
FIRST_SEED = 8_000_000_000  # training draws below 4e9, the examples from 9e9 on
VALIDATION_SEED = 8_500_000_000  # for choosing options
TEMPLATES = ("a drawing of {}",)
QUICK = 10  # --quick uses one scene in this many

_SEEDS_A_SET, _SEEDS_A_SCENE = 10_000_000, 10_000
_ONE_BOX = 0.6  # least share of the smaller box inside the other for the two to count as one box


@dataclass(frozen=True)
class Set:
    """Scenes of one kind, and the questions about them."""

    scenes: int
    about: str
    ask: Callable[[Scene], Sequence[Naming | Referring]]  # returns none if the set cannot use the scene
    drawn: Mapping[str, Any]  # arguments of `draw_scene`
    kinds: Sequence[str] = field(default_factory=tuple)  # of questions, a column each; empty: one column for the set


NAMES = tuple(with_article(noun) for noun in NOUNS)


# --- questions ---


def name_all(scene: Scene) -> list[Naming | Referring]:
    """Ask which of all nouns names each object."""
    return [Naming(k, NAMES, NOUNS.index(region.noun)) for k, region in enumerate(scene.regions)]


def name_and_refer(scene: Scene) -> list[Naming | Referring]:
    """Ask for the noun of each object, and for the object of each noun: which is the cat?"""
    asked = [Naming(q.region, q.names, q.answer, "plain") for q in name_all(scene) if isinstance(q, Naming)]
    phrases = [_drawing(with_article(region.noun)) for region in scene.regions]
    return [*asked, *(Referring(phrase, frozenset([k]), "by noun") for k, phrase in enumerate(phrases))]


def name_overlapping(scene: Scene) -> list[Naming | Referring]:
    """Ask for the nouns of two objects if they nearly share a box."""
    one, other = (region.box for region in scene.regions)
    across, down = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return name_all(scene) if min(across, down) > 0 and across * down >= _ONE_BOX * smaller else []


def tell_twins(scene: Scene) -> list[Naming | Referring]:
    """Ask which of two objects of one noun is the red one, the large one, or the one on the left."""
    twins = [k for k, region in enumerate(scene.regions) if region.noun == _twin(scene)]
    one, other = (scene.regions[k] for k in twins)
    return [
        Referring(_drawing(phrase), frozenset([k]), f"by {kind}", tuple(twins))
        for k, region, twin in zip(twins, (one, other), (other, one), strict=True)
        for kind, phrase in _differences(region, twin, scene.image.shape[1])
    ]


def name_surroundings(scene: Scene) -> list[Naming | Referring]:
    """Ask what each object stands on, which a cut-out cannot show."""
    words = list(BACKGROUNDS)
    asked: list[Naming | Referring] = []
    for k, region in enumerate(scene.regions):
        names = tuple(f"{with_article(region.noun)} {phrase}" for phrase in BACKGROUNDS.values())
        asked.append(Naming(k, names, words.index(scene.background), "by background"))
    return asked


def tell_neighbours(scene: Scene) -> list[Naming | Referring]:
    """Ask which of two objects of one noun is, for instance, left of the tree."""
    noun = _twin(scene)
    twins = [k for k, region in enumerate(scene.regions) if region.noun == noun]
    (third,) = (region for region in scene.regions if region.noun != noun)
    lies = [relation(scene.regions[k].box, third.box) for k in twins]
    if lies[0] == lies[1]:
        return []
    return [
        Referring(_drawing(f"{with_article(noun)} {where} the {third.noun}"), frozenset([k]), "by neighbour", (*twins,))
        for k, where in zip(twins, lies, strict=True)
        if where is not None
    ]


def _drawing(phrase: str) -> str:
    return TEMPLATES[0].format(phrase)


def _twin(scene: Scene) -> str:
    """The noun that two objects share."""
    nouns = [region.noun for region in scene.regions]
    return next(noun for noun in nouns if nouns.count(noun) == 2)


def _differences(region: Region, twin: Region, width: int) -> Iterator[tuple[str, str]]:
    """Yield (kind, phrase) for phrases that are true of one twin and not of the other."""
    noun = region.noun
    if region.color != twin.color:
        yield "colour", with_article(f"{region.color} {noun}")
    if region.size == "large" != twin.size:  # `tiny` was never trained on "small"
        yield "size", f"a large {noun}"
    if region.box[2] < width / 2 < twin.box[0]:
        yield "side", f"{with_article(noun)} on the left"
    if region.box[0] > width / 2 > twin.box[2]:
        yield "side", f"{with_article(noun)} on the right"


SETS: dict[str, Set] = {
    "plain": Set(150, "2 to 4 objects", name_and_refer, {"objects": (2, 4)}, ("plain", "by noun")),
    "single": Set(100, "one object", name_all, {"objects": (1, 1)}),
    "overlap": Set(100, "two in one box", name_overlapping, {"objects": (2, 2), "overlap": 1.0, "scale": (0.45, 0.8)}),
    "twins": Set(
        150,
        "two of one noun: which is meant",
        tell_twins,
        {"objects": (2, 3), "twins": True, "scale": (0.2, 0.55), "overlap": 0.0},
        ("by colour", "by size", "by side"),
    ),
    "background": Set(50, "what the surroundings decide", name_surroundings, {"objects": (1, 2)}, ("by background",)),
    "neighbour": Set(
        50,
        "what the surroundings decide: two of one noun, told by a third object",
        tell_neighbours,
        {"objects": (3, 3), "twins": True, "overlap": 0.0},
        ("by neighbour",),
    ),
    "small": Set(100, "objects of a tenth to a sixth of the side", name_all, {"objects": (2, 4), "scale": (0.1, 0.16)}),
    "outline": Set(100, "a style never trained on", name_all, {"objects": (2, 4), "style": "outline"}),
    "hatched": Set(100, "another", name_all, {"objects": (2, 4), "style": "hatched"}),
    "held-out": Set(100, "nouns that no region phrase named", name_all, {"objects": (2, 4), "nouns": HELD_OUT}),
}


# --- the task ---


def sample(name: str, number: int, first_seed: int = FIRST_SEED) -> Sample:
    """Scene `number` of the set `name`: the first, from its seed onwards, that the set can use."""
    chosen = SETS[name]
    seed = first_seed + _SEEDS_A_SET * list(SETS).index(name) + _SEEDS_A_SCENE * number
    for shift in count():
        scene = draw_scene(seed + shift, SIZE, attributes=0.0, **chosen.drawn)
        if questions := tuple(chosen.ask(scene)):
            break
    return Sample(f"{name} {number}", Image.fromarray(scene.image), scene.masks, questions, name)


def task(quick: bool = False, first_seed: int = FIRST_SEED, sets: Sequence[str] = tuple(SETS)) -> Task:
    """The scenes of the named sets; if `quick`, every tenth."""
    numbered = [(name, i) for name in sets for i in range(0, SETS[name].scenes, QUICK if quick else 1)]
    keys = [f"{name} {i}" for name, i in numbered]
    columns = [Column(kind, (kind,)) for name in sets for kind in SETS[name].kinds or (name,)]
    identity = {"first seed": first_seed, "pixels": SIZE}
    pictures = [f"{key} from seed {first_seed}" for key in keys]
    return Task("scenes", keys, lambda i: sample(*numbered[i], first_seed), columns, TEMPLATES, identity, pictures)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one scene in ten, within a minute")


def from_arguments(args: argparse.Namespace, validation: bool = False) -> Task:
    return task(args.quick, VALIDATION_SEED if validation else FIRST_SEED)
