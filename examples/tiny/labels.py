"""Drawn scenes as training shards, with exact labels, labels made by a pipeline, and wrong labels.

Phrases and captions have nouns only, so that a phrase is either right or wrong.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from data import SIZE, with_article
from PIL import Image
from webdataset import TarWriter

from alpha_clip import masks
from alpha_clip.evaluation import subjects
from alpha_clip.pipeline import AnnotateGrounding, Caption, ClipCaptioner, Segmenter, Stage
from alpha_clip.pipeline.caption import Background
from alpha_clip.pipeline.grounding import Grounding
from alpha_clip.scenes import HELD_OUT, NOUNS, draw_scene
from alpha_clip.training import Picture, Region
from alpha_clip.training.writing import QUALITY
from alpha_clip.transforms import mask_box

FIRST_SEED = 6_000_000_000  # neither train.py nor ablations.py nor evaluate.py draws there
PER_SHARD = 500  # pictures

Phrases = Sequence[Sequence[str]]  # the phrases of each picture's regions


def drawn(count: int) -> Iterator[Picture]:
    """Draw `count` pictures with exact masks; their keys are the seeds of the scenes.

    Held-out nouns are in captions only, as in the training of `tiny`; scenes with no other nouns are left out.
    """
    seed = FIRST_SEED
    while count:
        scene = draw_scene(seed, SIZE, objects=(1, 5), scale=(0.28, 0.6), overlap=0.3, attributes=0.0)
        named = [region for region in scene.regions if region.noun not in HELD_OUT]
        if named:
            caption = ", ".join(with_article(region.phrase) for region in scene.regions)
            regions = tuple(Region(with_article(region.phrase), region.mask) for region in named)
            yield Picture(str(seed), Image.fromarray(scene.image), caption, regions)
            count -= 1
        seed += 1


def once(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill the folder, under a temporary name, unless it exists."""
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        part.mkdir(parents=True)
        write(part)
        os.replace(part, folder)


# --- input of the pipeline, and its labels ---


def write_grit(pictures: Iterable[Picture], folder: Path) -> None:
    """Write shards as img2dataset writes GRIT: places of words in the caption with boxes, and no masks."""
    source, number = iter(pictures), 0
    while some := list(islice(source, PER_SHARD)):
        with TarWriter(str(folder / f"{number:06d}.tar"), mtime=0, encoder=False) as writer:
            for picture in some:
                writer.write(_of_grit(picture))
        number += 1


def _of_grit(picture: Picture) -> dict[str, str | bytes]:
    caption, size = str(picture.caption), np.tile(picture.image.size, 2)
    expressions = []
    for region in picture.regions:
        start = f"{caption},".index(f"{region.phrase},")
        corners = (np.array(mask_box(region.mask)) / size).tolist()
        expressions.append([start, start + len(region.phrase), *corners, 1.0])
    jpg = io.BytesIO()
    picture.image.save(jpg, "JPEG", quality=QUALITY)  # as `write_shards` does
    record = {"caption": caption, "ref_exps": expressions, "url": f"scene:{picture.key}"}
    return {"__key__": picture.key, "jpg": jpg.getvalue(), "json": json.dumps(record).encode()}


@dataclass(frozen=True)
class AnnotateAndCaption(AnnotateGrounding):
    """Annotate grounding, then replace each phrase by the noun that plain `tiny` finds nearest to the region's crop.

    `background` is that of `Caption`.
    """

    background: Background = "white"

    @property
    def texts(self) -> list[str]:
        return [with_article(noun) for noun in NOUNS]

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "command": "annotate and caption", "texts": self.texts}

    def prepare(self) -> Grounding:
        plain = subjects.find("tiny", self.device).base
        assert plain is not None
        grounding = super().prepare()
        return _Captioned(self, grounding.segmenter, Caption(ClipCaptioner(plain, self.texts), self.background))


class _Captioned(Grounding):
    def __init__(self, work: AnnotateGrounding, segmenter: Segmenter, caption: Caption) -> None:
        super().__init__(work, segmenter)
        self.caption = caption
        self.models = {**self.models, "captioner": caption.captioner.identity}

    def stages(self) -> list[Stage]:
        return [*super().stages(), self.caption]


# --- labels that are wrong ---


@dataclass(frozen=True)
class Wrong:
    """Gives some regions, which follow from the seed, the mask or the phrase of another region.

    A wrong mask is that of another region of the picture, as if a segmenter took the neighbour; in a picture of one
    region it is the region's own, moved to cover as little of the region as possible. A wrong phrase is one of another
    picture that is true of nothing in this one. Masks and phrases are drawn independently. A region that is wrong at a
    low share is wrong in the same way at a higher one.
    """

    phrases: Phrases  # of all pictures, in order
    masks_share: float = 0.0
    phrases_share: float = 0.0
    seed: int = 0

    def __call__(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        """Relabel the pictures, which must be in the order of `phrases`."""
        first = 0
        for number, picture in enumerate(pictures):
            rng = np.random.default_rng([self.seed, number])
            places = range(first, first + len(picture.regions))
            wrong = zip(self._other_masks(picture, rng), self._other_phrases(number, rng), strict=True)
            regions = [
                replace(
                    region,
                    mask=mask if place in self._with_mask else region.mask,
                    phrase=phrase if place in self._with_phrase else region.phrase,
                )
                for place, region, (mask, phrase) in zip(places, picture.regions, wrong, strict=True)
            ]
            yield replace(picture, regions=tuple(regions))
            first = places.stop

    @cached_property
    def _with_mask(self) -> set[int]:
        return self._chosen(self.masks_share, 0)

    @cached_property
    def _with_phrase(self) -> set[int]:
        return self._chosen(self.phrases_share, 1)

    def _chosen(self, share: float, kind: int) -> set[int]:
        """Numbers of the chosen regions, counted over all pictures: the first in an order that is always the same."""
        count = sum(map(len, self.phrases))
        order = np.random.default_rng([self.seed, kind, count]).permutation(count)
        return set(order[: round(share * count)].tolist())

    @cached_property
    def _vocabulary(self) -> list[str]:
        return sorted({phrase for some in self.phrases for phrase in some})

    def _other_masks(self, picture: Picture, rng: np.random.Generator) -> list[np.ndarray]:
        true = [region.mask for region in picture.regions]
        if len(true) == 1:
            return [masks.aside(true[0], true[0])[0]]
        steps = rng.integers(1, len(true), size=len(true))
        return [true[(k + step) % len(true)] for k, step in enumerate(steps.tolist())]

    def _other_phrases(self, number: int, rng: np.random.Generator) -> list[str]:
        own = self.phrases[number]
        others = [phrase for phrase in self._vocabulary if phrase not in own]
        return [str(phrase) for phrase in rng.permutation(others)[: len(own)]]


# --- how good labels are ---


@dataclass(frozen=True)
class Quality:
    """How correct a set of labels is."""

    regions: int
    overlap: float  # mean IoU of the masks with the exact ones
    misplaced: float  # share of the masks whose IoU with the exact ones is below 0.5
    misnamed: float  # share of the phrases that are not the region's


def quality(labelled: Iterable[Picture], named: Iterable[Picture], exact: Callable[[str], Picture]) -> Quality:
    """Measure `labelled`. `named` has the same regions with true phrases; `exact` finds the exact picture of a key."""
    overlaps, wrong = [], 0
    for picture, same in zip(labelled, named, strict=True):
        true = {region.phrase: region.mask for region in exact(picture.key).regions}
        for region, names in zip(picture.regions, same.regions, strict=True):
            overlaps.append(masks.iou(region.mask, true[names.phrase]))
            wrong += region.phrase != names.phrase
    iou = np.array(overlaps)
    return Quality(len(iou), float(iou.mean()), float((iou < 0.5).mean()), wrong / len(iou))
