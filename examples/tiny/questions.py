"""Questions that the paper leaves open, asked of a model on drawn scenes: graded masks, several objects, relations.

Each answer comes with a baseline: what features of single masks give without such training. The questions are those of
the probes "graded" and "unions" of `alpha_clip.evaluation`.
"""

from __future__ import annotations

import numpy as np
from data import SIZE, with_article
from PIL import Image

from alpha_clip.evaluation import Naming, Sample
from alpha_clip.evaluation.probes import graded, unions
from alpha_clip.evaluation.subjects import of
from alpha_clip.model import CLIP
from alpha_clip.scenes import NOUNS, draw_scene

FIRST_SEED = 9_500_000_000  # neither training nor evaluate.py draws there
NAMES = tuple(with_article(noun) for noun in NOUNS)
AS_IT_IS = ("{}",)  # templates: names alone

Answer = tuple[float, float]  # the model's, and the baseline's


def ask(model: CLIP, count: int) -> dict[str, Answer]:
    """Questions and answers on `count` scenes of 2 to 4 objects.

    "graded" and "weighted" are mean distances between the share that a text should have and the one it has: 0 is best,
    and a constant 1/2 has 0.3. The others are shares of right answers.
    """
    subject = of("model", model)
    answers: dict[str, list[Answer]] = {}
    for number in range(count):
        sample, caption = _sample(number)
        around = graded.region_and_all(subject, sample, caption, AS_IT_IS)
        weighted = graded.two_regions(subject, sample, AS_IT_IS)
        asked = [("graded: distance of the caption's share from b", steps.distances) for steps in around]
        asked += [("weighted: distance of the shares from the weights", steps.distances) for steps in weighted]
        for question, *right in unions.ask(subject, sample, AS_IT_IS):
            if question in _SAID:
                asked.append((_SAID[question], (float(right[0]), float(right[1]))))
        for question, answer in asked:
            answers.setdefault(question, []).append(answer)
    means = {question: np.mean(values, axis=0).tolist() for question, values in answers.items()}
    return {question: (model_s, baseline_s) for question, (model_s, baseline_s) in means.items()}


_SAID = {
    unions.named_as(size): f"{size} of the objects, named among all sets of up to {unions.MOST}"
    for size in range(1, unions.MOST + 1)
} | {unions.RELATION: "relation of two: right way round (chance 50%)"}


def _sample(number: int) -> tuple[Sample, str]:
    """A scene as a sample of the evaluation, and its caption."""
    scene = draw_scene(FIRST_SEED + number, SIZE, objects=(2, 4), attributes=0.0)
    named = tuple(Naming(k, NAMES, NOUNS.index(region.noun)) for k, region in enumerate(scene.regions))
    return Sample(str(number), Image.fromarray(scene.image), scene.masks, named), scene.caption
