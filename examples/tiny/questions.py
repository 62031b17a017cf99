"""What the paper leaves open, asked of a model on drawn scenes: masks of several values, several objects, relations.

Each answer stands beside what the features of single masks give without any training for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from data import SIZE, alpha_tensor, image_tensor, with_article
from torch import Tensor

import alpha_clip
from alpha_clip.model import CLIP
from alpha_clip.scenes import Region, Scene, draw_scene, relation
from alpha_clip.training.views import MOST_AT_ONCE, joined

FIRST_SEED = 9_500_000_000  # neither training nor evaluate.py draws there
BACKGROUNDS = (0.0, 0.25, 0.5, 0.75, 1.0)  # alpha around a region
WEIGHTS = ((1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (0.5, 1.0), (0.0, 1.0))  # of two regions

Answer = tuple[float, float]  # the model's, and the baseline's


def ask(model: CLIP, count: int) -> dict[str, Answer]:
    """Questions and answers on `count` scenes of 2 to 4 objects.

    "graded" and "weighted" are mean distances between the share that a text should have and the one it has, 0 is
    best and a constant 1/2 has 0.3; the others are shares of right answers.
    """
    scenes = [draw_scene(FIRST_SEED + i, SIZE, objects=(2, 4), attributes=0.0) for i in range(count)]
    answers: dict[str, list[Answer]] = {}
    texts: dict[str, Tensor] = {}
    for scene in scenes:
        for question, found in _Asked(model, scene, texts).answers():
            answers.setdefault(question, []).append(found)
    means = {question: np.mean(found, axis=0).tolist() for question, found in answers.items()}
    return {question: (model_s, baseline_s) for question, (model_s, baseline_s) in means.items()}


class _Asked:
    """A model in front of one scene."""

    @torch.no_grad()
    def __init__(self, model: CLIP, scene: Scene, texts: dict[str, Tensor]) -> None:
        self.model, self.scene, self.image = model, scene, image_tensor(scene.image)
        self.texts = texts  # features of those already met
        self.masks = [region.mask for region in scene.regions]
        self.single = self.see(self.masks)  # (K, D)
        self.whole = self.see([np.ones_like(self.masks[0])])[0]

    @torch.no_grad()
    def see(self, masks: Sequence[np.ndarray]) -> Tensor:
        """(K, D), of unit length."""
        return F.normalize(self.model.encode_image(self.image, torch.stack([alpha_tensor(m) for m in masks])), dim=-1)

    @torch.no_grad()
    def shares(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """(K, T): how the model shares each image feature out among the texts, as it does for zero-shot answers."""
        if new := [text for text in texts if text not in self.texts]:
            encoded = F.normalize(self.model.encode_text(alpha_clip.tokenize(new)), dim=-1)
            self.texts |= zip(new, encoded, strict=True)
        text = torch.stack([self.texts[text] for text in texts])
        return (self.model.logit_scale.exp() * image @ text.T).softmax(dim=-1)

    def answers(self) -> list[tuple[str, Answer]]:
        regions, pairs = self.scene.regions, list(combinations(range(len(self.masks)), 2))
        found = [("graded: distance of the caption's share from b", self._graded(i)) for i in range(len(regions))]
        found += [("weighted: distance of the shares from the weights", self._weighted(i, j)) for i, j in pairs]
        found += self._sets()
        for i, j in pairs:
            if (lies := relation(regions[i].box, regions[j].box)) is not None:
                found.append(("relation of two: right way round (chance 50%)", self._relation(i, j, lies)))
        return found

    def _graded(self, i: int) -> Answer:
        texts = [_name(self.scene.regions[i]), self.scene.caption]
        wanted = torch.tensor(BACKGROUNDS)
        seen = self.see([np.maximum(self.masks[i], b) for b in BACKGROUNDS])
        between = F.normalize((1 - wanted)[:, None] * self.single[i] + wanted[:, None] * self.whole, dim=-1)
        return self._distance(seen, between, texts, wanted)

    def _weighted(self, i: int, j: int) -> Answer:
        texts = [_name(self.scene.regions[k]) for k in (i, j)]
        seen = self.see([np.maximum(v * self.masks[i], w * self.masks[j]) for v, w in WEIGHTS])
        weights = torch.tensor(WEIGHTS)
        weights = weights / weights.sum(dim=1, keepdim=True)
        between = F.normalize(weights @ self.single[[i, j]], dim=-1)
        return self._distance(seen, between, texts, weights[:, 1])

    def _distance(self, seen: Tensor, baseline: Tensor, texts: Sequence[str], wanted: Tensor) -> Answer:
        one, other = ((self.shares(x, texts)[:, 1] - wanted).abs().mean() for x in (seen, baseline))
        return float(one), float(other)

    def _sets(self) -> list[tuple[str, Answer]]:
        """Each set of up to three objects, under one mask, named among all such sets."""
        sets = [s for size in range(1, MOST_AT_ONCE + 1) for s in combinations(range(len(self.masks)), size)]
        texts = [joined([_name(self.scene.regions[k]) for k in s]) for s in sets]
        seen = self.see([np.max([self.masks[k] for k in s], axis=0) for s in sets])
        mean = F.normalize(torch.stack([self.single[list(s)].mean(dim=0) for s in sets]), dim=-1)
        right = [(self.shares(x, texts).argmax(dim=1) == torch.arange(len(sets))).tolist() for x in (seen, mean)]
        return [
            (f"{len(s)} of the objects, named among all sets of up to {MOST_AT_ONCE}", (float(one), float(other)))
            for s, one, other in zip(sets, *right, strict=True)
        ]

    def _relation(self, i: int, j: int, lies: str) -> Answer:
        one, other = (self.scene.regions[k].noun for k in (i, j))
        texts = [f"{with_article(one)} {lies} the {other}", f"{with_article(other)} {lies} the {one}"]
        seen = self.see([np.maximum(self.masks[i], self.masks[j])])
        mean = F.normalize(self.single[[i, j]].mean(dim=0, keepdim=True), dim=-1)
        first, second = (float(self.shares(x, texts)[0].argmax() == 0) for x in (seen, mean))
        return first, second


def _name(region: Region) -> str:
    return with_article(region.noun)
