"""Options of a way chosen on pictures for that, and never on those that the figures are of.

>>> [way.name for way in alternatives("crop:context=1|1.5 + 0.5*alpha")]
['crop:context=1 + 0.5*alpha', 'crop:context=1.5 + 0.5*alpha']
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from itertools import chain, product, zip_longest
from pathlib import Path

import numpy as np

from . import metrics
from .run import Run, run
from .samples import Task
from .subjects import Subject
from .tables import Cell, Finding, Table
from .ways import Way, parse

_ALTERNATIVES = re.compile(r"[\w.]+(?:\|[\w.]+)+")


def alternatives(text: str) -> list[Way]:
    """All ways in a text with a bar between alternative numbers or words, ``0.5|1*crop:context=1|2+alpha``.

    Raises:
        ValueError: there are no alternatives in it, or one of them is no way.
    """
    between = _ALTERNATIVES.split(text)
    choices = [found.split("|") for found in _ALTERNATIVES.findall(text)]
    if not choices:
        raise ValueError(f"{text!r} leaves nothing to choose, expected alternatives, such as 'crop:context=1|1.5|2'")
    whole = (chain.from_iterable(zip_longest(between, chosen, fillvalue="")) for chosen in product(*choices))
    return [parse("".join(pieces)) for pieces in whole]


def choose(
    texts: Sequence[str], validation: Task, test: Task, subjects: Sequence[Subject], folder: Path, chunk: int = 32
) -> tuple[list[Way], Finding]:
    """The alternative of each text with the best mean over the models in `validation`'s first column, and the figures.

    Of `test`, nothing but the names of its pictures is looked at. `folder` is as in `run`, of the validation.

    Raises:
        ValueError: a picture is in both; a text has no alternatives, or none that a model can look in.
    """
    check_apart(validation, test)
    offered = [alternatives(text) for text in texts]
    found = run(validation, subjects, [way for ways in offered for way in ways], folder, chunk)
    chosen = [_best(ways, found) for ways in offered]
    column = validation.columns[0]
    names = {way.name for way in chosen}
    rows: list[list[Cell]] = [
        [model, way, metrics.estimate(found.hits(column, model, way)), "chosen" if way in names else ""]
        for model, way in found.ways()
    ]
    verdict = (
        f"Chosen by {column.title} on {len(validation.keys)} samples that no other figure here is of, the mean over "
        f"the models: {', '.join(way.name for way in chosen)}."
    )
    table = Table("Validation", ["model", "way", column.title, ""], rows)
    return chosen, Finding("tuning", "What was chosen on other pictures", verdict, [table])


def check_apart(validation: Task, test: Task) -> None:
    """Raise ValueError where both tasks have a picture."""
    both = set(validation.pictures or validation.keys) & set(test.pictures or test.keys)
    if both:
        raise ValueError(
            f"{len(both)} pictures are in the validation set and in the test set, such as {min(both)}: options must be "
            "chosen on other pictures; see --validation and --hold-back"
        )


def add_hold_back(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hold-back",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the pictures, by their names: for --tune alone, and never in the figures",
    )


def is_held_back(name: str, share: float) -> bool:
    """Whether a picture is among the `share` for validation: always the same ones, and more with a larger share.

    Raises:
        ValueError: the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"--hold-back is {share}, expected a share of the pictures from 0 to less than 1, such as 0.2")
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < share * 16**8


def _best(ways: Sequence[Way], found: Run) -> Way:
    """The first of the best."""
    return max(ways, key=lambda way: _mean(way, found))


def _mean(way: Way, found: Run) -> float:
    column = found.task.columns[0]
    estimates = [metrics.estimate(found.hits(column, *pair)) for pair in found.ways() if pair[1] == way.name]
    values = [estimate.value for estimate in estimates if estimate is not None]
    if not values:
        raise ValueError(f"no model can look in {way.name!r}, or nothing was asked: it cannot be chosen or ruled out")
    return float(np.mean(values))
