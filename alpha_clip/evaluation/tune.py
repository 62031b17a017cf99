"""Choose the options of a way on validation pictures, never on those that the figures are about.

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
    """Expand a text with bars between alternative numbers or words, ``0.5|1*crop:context=1|2+alpha``, to all ways.

    Raises:
        ValueError: the text has no alternatives, or one of them is not a way.
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
    """Choose the best alternative of each text: by the first column of `validation`, averaged over the models.

    Args:
        texts: see `alternatives`.
        test: only the names of its pictures are used, to check that none is in `validation`.
        folder: for the answers to `validation`, see `run`.

    Returns:
        The chosen ways, and a finding with all figures.

    Raises:
        ValueError: a picture is in both tasks; a text has no alternatives, or none that fits a model.
    """
    check_apart(validation, test)
    offered = [alternatives(text) for text in texts]
    answers = run(validation, subjects, [way for ways in offered for way in ways], folder, chunk)
    chosen = [_best(ways, answers) for ways in offered]
    column = validation.columns[0]
    names = {way.name for way in chosen}
    rows: list[list[Cell]] = [
        [model, way, metrics.estimate(answers.hits(column, model, way)), "chosen" if way in names else ""]
        for model, way in answers.ways()
    ]
    verdict = (
        f"Chosen by {column.title} on {len(validation.keys)} samples that no other figure here is of, the mean over "
        f"the models: {', '.join(way.name for way in chosen)}."
    )
    table = Table("Validation", ["model", "way", column.title, ""], rows)
    return chosen, Finding("tuning", "What was chosen on other pictures", verdict, [table])


def check_apart(validation: Task, test: Task) -> None:
    """Raise ValueError if the tasks share a picture."""
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
        help="share of the pictures kept for --tune only",
    )


def is_held_back(name: str, share: float) -> bool:
    """Whether a picture is held back for validation, decided by its name; a larger share only adds pictures.

    Raises:
        ValueError: the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"--hold-back is {share}, expected a share of the pictures from 0 to less than 1, such as 0.2")
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < share * 16**8


def _best(ways: Sequence[Way], answers: Run) -> Way:
    """The way with the highest mean; the first among equals."""
    return max(ways, key=lambda way: _mean(way, answers))


def _mean(way: Way, answers: Run) -> float:
    column = answers.task.columns[0]
    estimates = [metrics.estimate(answers.hits(column, *pair)) for pair in answers.ways() if pair[1] == way.name]
    values = [estimate.value for estimate in estimates if estimate is not None]
    if not values:
        raise ValueError(f"no model can look in {way.name!r}, or nothing was asked: it cannot be chosen or ruled out")
    return float(np.mean(values))
