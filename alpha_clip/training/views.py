"""The training samples of a picture: its regions under changed masks, several at once, and the whole picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import masks
from ..inputs import denormalised, normalised
from ..transforms import NoForeground, Preprocess
from ..zero_shot import joined
from .config import TrainConfig
from .records import BadSample, Picture, Region

REGIONS_PER_PICTURE = 8  # drawn anew each epoch from pictures that have more
MOST_AT_ONCE = 3  # most regions under one mask


@dataclass(frozen=True)
class SecondText:
    """Another text that describes a sample in part."""

    text: str
    weight: float  # in [0, 1], its share of the sample's loss; the first text has the rest
    whole: bool = False  # whether it describes the whole picture


@dataclass(frozen=True)
class Sample:
    """A picture, where to look in it, and what is there."""

    image: Tensor  # (3, n, n), normalised as by `preprocess`
    text: str | None  # None: a whole picture without a caption, used for distillation only
    alpha: Tensor | None = None  # (1, n, n), (mask - 0.5) / 0.26; None: the whole image
    second: SecondText | None = None
    hard_negatives: tuple[str, ...] = ()  # of the same picture: names of its regions, and of sets of them


class Views(NamedTuple):
    """The samples that one epoch makes of a picture."""

    samples: list[Sample]
    too_small: int  # regions left out: at the model's size their mask is nowhere above 0.5


def views(picture: Picture, preprocess: Preprocess, config: TrainConfig, rng: np.random.Generator) -> Views:
    """Make the samples of one epoch of a picture, in the shares that `config` sets.

    Raises:
        BadSample: the picture has neither a region nor a caption, or cannot be preprocessed.
    """
    chosen = rng.permutation(len(picture.regions))[:REGIONS_PER_PICTURE]
    regions = [picture.regions[i] for i in chosen]
    count, whole, too_small = len(regions), False, 0
    if picture.caption is not None or config.distill:
        count, whole = _shared_out(config.whole, len(regions), rng)
    if not regions and picture.caption is None:
        raise BadSample(picture.key, "it has neither a region nor a caption")
    try:
        samples = []
        if count:
            changed = np.stack([_changed(region.mask, config, rng) for region in regions])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoForeground)  # they are counted here
                rgb, alpha = preprocess(picture.image, changed, geometry=config.geometry)
            large = [i for i in range(len(regions)) if (alpha[i] > 0).any()]
            too_small = len(regions) - len(large)
            drawn = _Preprocessed(rgb, alpha[large], [regions[i] for i in large], picture.caption)
            samples = [drawn.sample(i, config, rng) for i in range(min(count, len(large)))]
            if any(sample.hard_negatives for sample in samples):  # then every region of it is told from the sets too
                samples = [s if s.second else replace(s, hard_negatives=drawn.sets) for s in samples]
        if whole:
            full = np.ones((1, picture.image.height, picture.image.width), np.float32)
            rgb, _ = preprocess(picture.image, full, geometry=config.geometry)
            samples.append(Sample(rgb, picture.caption))
    except (ValueError, OSError) as error:
        raise BadSample(picture.key, str(error)) from error
    return Views(samples, too_small)


def _shared_out(share: float, regions: int, rng: np.random.Generator) -> tuple[int, bool]:
    """How many regions to show, and whether the whole picture: of all samples, `share` are whole pictures on average.

    A picture gives at most one whole sample, since two would have the same text; a large share means fewer regions.
    """
    if regions == 0:
        return 0, True
    if share * regions <= 1:
        whole = bool(rng.random() < share * regions)
        return regions - whole, whole
    return int(1 / share - 1 + rng.random()), True


def _changed(mask: np.ndarray, config: TrainConfig, rng: np.random.Generator) -> np.ndarray:
    kind = rng.random()
    for share, change in ((config.box, masks.box), (config.ellipse, masks.ellipse)):
        if kind < share:
            return change(mask)
        kind -= share
    return masks.jitter(mask, rng) if kind < config.jitter else mask


@dataclass(frozen=True)
class _Preprocessed:
    """A picture and its regions after `preprocess`."""

    rgb: Tensor  # (3, n, n)
    alpha: Tensor  # (K, 1, n, n)
    regions: Sequence[Region]  # K
    caption: str | None

    def sample(self, i: int, config: TrainConfig, rng: np.random.Generator) -> Sample:
        """Region i, alone or with others; alone too if the kind drawn is one that this picture cannot give."""
        kind = rng.random()
        others = [j for j in range(len(self.regions)) if self.regions[j].phrase != self.regions[i].phrase]
        if kind < config.graded:
            if self.caption is not None:
                return self._graded(i, self.caption, rng.random())
            _warn_of_no_caption()
        kind -= config.graded
        if 0 <= kind < config.weighted and others:
            return self._weighted(i, int(rng.choice(others)), 1 - rng.random())
        kind -= config.weighted
        if 0 <= kind < config.union and others:
            most = min(MOST_AT_ONCE - 1, len({self.regions[j].phrase for j in others}))
            return self._union(i, rng.permutation(others).tolist(), int(rng.integers(1, most + 1)), config)
        return Sample(self.rgb, self.regions[i].phrase, self.alpha[i])

    def _graded(self, i: int, caption: str, b: float) -> Sample:
        """Region i at 1 and the rest at b in [0, 1], padding included; b = 1 is the whole picture."""
        alpha = self.alpha[i].clamp_min(normalised(torch.tensor(b)))
        return Sample(self.rgb, self.regions[i].phrase, alpha, SecondText(caption, b, whole=True))

    def _weighted(self, i: int, j: int, w: float) -> Sample:
        """Region i at 1 and region j at w in (0, 1], which share the loss in this proportion."""
        mask = torch.maximum(denormalised(self.alpha[i]), w * denormalised(self.alpha[j]))
        second = SecondText(self.regions[j].phrase, w / (1 + w))
        return Sample(self.rgb, self.regions[i].phrase, normalised(mask), second)

    def _union(self, i: int, others: list[int], more: int, config: TrainConfig) -> Sample:
        """Region i and `more` of the others under one mask; all phrases differ."""
        members = {self.regions[i].phrase: i}
        for j in others:
            if len(members) <= more:
                members.setdefault(self.regions[j].phrase, j)
        return Sample(
            self.rgb, joined(sorted(members)), self.alpha[list(members.values())].amax(dim=0), hard_negatives=self.sets
        )

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of all sets of regions that may be under one mask, members sorted, so that a set has one name."""
        phrases, sizes = sorted({region.phrase for region in self.regions}), range(1, MOST_AT_ONCE + 1)
        return tuple(joined(some) for size in sizes for some in combinations(phrases, size))


@lru_cache(1)
def _warn_of_no_caption() -> None:
    """Warn once in each process that loads data."""
    warnings.warn("the share of graded masks is not reached: pictures without a caption cannot have them", stacklevel=3)
