"""Which regions of a folder of pictures match a text? Measured on drawn scenes, where it is known what lies where.

python examples/search_regions.py

On pictures of yours the command does it, `alpha-clip search photos/ "a red umbrella"`, or `alpha_clip.search`, as in
`measure` below.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from alpha_clip.mask_sources import Source, grid
from alpha_clip.scenes import NOUNS, draw_scene
from alpha_clip.search import Hit, RegionIndex, fill, find, load, sheet

FIRST_SEED = 9_900_000_000  # neither training nor another measurement draws there
TOP = 5
SHOWN = ("bicycle", "boat", "cat", "dog", "mushroom", "owl", "rocket", "train")

Box = tuple[float, float, float, float]  # (x0, y0, x1, y1) in [0, 1]


class Way(NamedTuple):
    """A way to index."""

    name: str
    folder: str  # "exact": with masks beside the pictures; "bare"
    method: str
    source: Source


WAYS = (
    Way("exact masks, as alpha", "exact", "alpha", grid),
    Way("exact masks, as crops", "exact", "crop", grid),
    Way("a grid of boxes, as alpha", "bare", "alpha", grid),
    Way("the whole picture", "bare", "whole", lambda picture: [np.ones(picture.size[::-1])]),
)


class Truth(NamedTuple):
    """An object of a scene."""

    noun: str
    file: str
    box: Box


def draw(folder: Path, count: int) -> list[Truth]:
    """Scenes into `folder`/exact, with their masks, and into `folder`/bare, without."""
    for name in ("exact", "bare"):
        (folder / name).mkdir()
    objects = []
    for i in range(count):
        scene, file = draw_scene(FIRST_SEED + i, (128, 160), objects=(2, 5)), f"{i:04d}.png"
        for name in ("exact", "bare"):
            Image.fromarray(scene.image).save(folder / name / file)
        masks = (255 * scene.masks).round().astype(np.uint8)
        np.savez_compressed(folder / "exact" / f"{i:04d}.masks.npz", masks=masks)
        for region in scene.regions:
            x0, y0, x1, y1 = region.box
            objects.append(Truth(region.noun, file, (x0 / 160, y0 / 128, x1 / 160, y1 / 128)))
    return objects


def report(folder: Path, count: int, picture: Path) -> Iterator[str]:
    """Draw, index and search; yield the lines of two tables."""
    objects = draw(folder, count)
    nouns = [noun for noun in NOUNS if sum(noun == one.noun for one in objects) >= TOP]
    if not nouns:
        raise ValueError(f"{count} scenes hold no noun {TOP} times: draw more")
    yield f"{count} scenes, {len(objects)} objects, {len(nouns)} nouns that occur {TOP} times or more, each searched as"
    yield f'"a NOUN". P@{TOP}: the share of the first {TOP} pictures that hold one, and of the first {TOP} regions that'
    yield "are one (intersection over union of the boxes at least a half).\n"
    yield f"| way | regions | picture P@{TOP} | region P@{TOP} |\n|---|---|---|---|"
    ways = [(way, *measure(way, folder, nouns, objects)) for way in WAYS]
    for way, regions, found, _ in ways:
        picture_share, region_share = (f"{share:.1%}" for share in np.mean(found, axis=0))
        yield f"| {way.name} | {regions} | {picture_share} | {'' if way.method == 'whole' else region_share} |"
    chance = np.mean([len({one.file for one in objects if one.noun == noun}) / count for noun in nouns])
    yield f"| pictures at random | | {chance:.1%} | |"
    yield f"\n| some nouns, {WAYS[0].name} | objects | picture P@{TOP} | region P@{TOP} |\n|---|---|---|---|"
    _, _, found, hits = ways[0]
    for noun, (by_picture, by_region) in zip(nouns, found, strict=True):
        if noun in SHOWN:
            there = sum(noun == one.noun for one in objects)
            yield f"| {named(noun)} | {there} | {by_picture:.0%} | {by_region:.0%} |"
    drawn = nouns.index("boat") if "boat" in nouns else 0
    sheet(hits[drawn][:10], named(nouns[drawn])).save(picture)
    yield f"\nhits drawn: {picture}"


def measure(
    way: Way, folder: Path, nouns: Sequence[str], objects: Sequence[Truth]
) -> tuple[int, list[tuple[float, float]], list[list[Hit]]]:
    """Index in a way and search each noun: how many regions there are, `precision` of each noun, and its hits."""
    model, settings = load("tiny", "cpu", way.method, way.folder)
    index = RegionIndex.create(folder / way.name, settings)
    fill(index, folder / way.folder, model, way.source)
    hits = find(index, model, [named(noun) for noun in nouns], 20 * TOP, exact=True)
    of = [[one for one in objects if one.noun == noun] for noun in nouns]
    return len(index), [precision(*pair) for pair in zip(hits, of, strict=True)], hits


def named(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def precision(hits: Sequence[Hit], objects: Sequence[Truth]) -> tuple[float, float]:
    """The share of right ones among the first `TOP` pictures, and among the first `TOP` regions."""
    files = list(dict.fromkeys(Path(hit.paths[0]).name for hit in hits))[:TOP]
    right = {one.file for one in objects}
    regions = [any(_same(hit, one) for one in objects) for hit in hits[:TOP]]
    return sum(file in right for file in files) / TOP, sum(regions) / TOP


def _same(hit: Hit, one: Truth) -> bool:
    """Whether intersection over union of two boxes, of the same picture, is at least a half."""
    a, b = np.array(hit.box), np.array(one.box)
    shared = float(np.prod((np.minimum(a, b)[2:] - np.maximum(a, b)[:2]).clip(min=0)))
    both = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]))
    return Path(hit.paths[0]).name == one.file and shared >= 0.5 * (both - shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200, help="to draw")
    parser.add_argument("--sheet", type=Path, default=Path("search_regions.png"), help="picture of some hits")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for line in report(Path(folder), args.scenes, args.sheet):
                print(line)
    except (OSError, ValueError) as error:
        sys.exit(f"search_regions: {error}")


if __name__ == "__main__":
    main()
