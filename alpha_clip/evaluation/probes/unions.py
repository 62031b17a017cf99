"""Several objects under one mask: does the model name them all, and their relation to each other?

For comparison, each answer is also given by the mean of the single objects' features, which needs no such mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F

from ...scenes import relation
from ...transforms import mask_box
from ...zero_shot import TEMPLATES, joined
from ..metrics import Estimate
from ..samples import Sample
from ..subjects import Subject
from ..tables import Cell, Finding, Table
from ..ways import Way
from .seeing import does_not_apply, in_words, namings, no_masks, own_name, percent, see, share

NAME, TITLE = "unions", "Several objects under one mask"
MOST = 3  # objects under one mask, as in training
REGIONS = 8  # at most, of each picture

Answer = tuple[str, bool, bool]  # the question; is the union's feature right; is the mean of single features right

RELATION = "how two lie to each other (chance 50%)"


def named_as(size: int) -> str:
    return f"{size} of the objects, among all sets of up to {MOST}"


def named_among_its_size(size: int) -> str:
    return f"{size} of the objects, among all sets of {size}"


@torch.no_grad()
def ask(subject: Subject, sample: Sample, templates: Sequence[str]) -> list[Answer]:
    """Ask about all sets of up to `MOST` named regions, and about the relation of each pair that has a clear one."""
    names = names_of(sample)
    if not names:
        return []
    regions = list(names)
    sets = [s for size in range(1, MOST + 1) for s in combinations(regions, size)]
    single = dict(zip(regions, see(subject, sample.image, sample.masks[regions]), strict=True))
    unions = see(subject, sample.image, [sample.masks[list(s)].max(axis=0) for s in sets])
    means = F.normalize(torch.stack([torch.stack([single[k] for k in s]).mean(dim=0) for s in sets]), dim=-1)
    texts = subject.names([joined([names[k] for k in s]) for s in sets], templates).cpu()
    scores = unions @ texts.T, means @ texts.T
    answers: list[Answer] = []
    for i, members in enumerate(sets):
        one, other = (bool(score[i].argmax() == i) for score in scores)
        answers.append((named_as(len(members)), one, other))
        rivals = [j for j, rival in enumerate(sets) if len(rival) == len(members)]
        if len(rivals) > 1:
            one, other = (bool(score[i, rivals].argmax() == rivals.index(i)) for score in scores)
            answers.append((named_among_its_size(len(members)), one, other))
    for pair in combinations(regions, 2):
        i = sets.index(pair)
        if (lies := relation(*(mask_box(sample.masks[k]) for k in pair))) is not None:
            both = _relation_texts(names[pair[0]], lies, names[pair[1]])
            texts = subject.names(both, templates).cpu()
            one, other = (bool((x[i] @ texts.T).argmax() == 0) for x in (unions, means))
            answers.append((RELATION, one, other))
    return answers


def names_of(sample: Sample) -> dict[int, str]:
    """The first `REGIONS` regions with a name that no other region of the picture has."""
    names = {k: own_name(question) for k, question in namings(sample).items()}
    single = [(k, name) for k, name in names.items() if list(names.values()).count(name) == 1]
    return dict(single[:REGIONS])


def _relation_texts(one: str, lies: str, other: str) -> list[str]:
    """The true relation, and the reversed one."""
    return [f"{one} {lies} {_the(other)}", f"{other} {lies} {_the(one)}"]


def _the(name: str) -> str:
    """Replace "a" or "an" by "the"; a name without an article stays as it is."""
    article, _, noun = name.partition(" ")
    return f"the {noun}" if article in ("a", "an") else name


def probe(
    subject: Subject,
    samples: Sequence[Sample],
    templates: Sequence[str] = TEMPLATES,
    ways: Sequence[Way] | None = None,
) -> Finding:
    """Report how well sets of objects under one mask are named, and "a left of b" is told from "b left of a"."""
    if not subject.takes_masks:
        return does_not_apply(NAME, TITLE, no_masks(subject))
    asked: dict[str, list[tuple[int, bool, bool]]] = {}
    for number, sample in enumerate(samples):
        for question, one, other in ask(subject, sample, templates):
            asked.setdefault(question, []).append((number, one, other))
    order = [say(size) for say in (named_as, named_among_its_size) for size in range(1, MOST + 1)] + [RELATION]
    rows: list[list[Cell]] = []
    figures: dict[str, list[Estimate | None]] = {}
    for question in order:
        if some := asked.get(question):
            figures[question] = [share([(number, answer[i]) for number, *answer in some]) for i in (0, 1)]
            rows.append([question, str(len(some)), *map(in_words, figures[question])])
    pair, three = (figures.get(named_as(size)) for size in (2, 3))
    if pair is None:
        return does_not_apply(NAME, TITLE, "no picture has two objects of different names.")
    verdict = f"Two objects under one mask are named in {percent(pair[0])}, by the mean of single masks in "
    verdict += percent(pair[1])
    verdict += f"; three in {percent(three[0])} and {percent(three[1])}." if three else "."
    if lies := figures.get(RELATION):
        verdict += f" How two objects lie to each other is told in {percent(lies[0])}; chance is 50%."
    return Finding(
        NAME,
        TITLE,
        verdict,
        [Table("Sets and relations", ["asked", "times", "one mask", "mean of single masks"], rows)],
    )
