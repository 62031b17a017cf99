"""Shares of right answers with intervals from a bootstrap over pictures, paired between ways.

The draws are the same pictures for all ways, so that a difference comes from the ways and not from the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from .records import Record
from .samples import Column

DRAWS = 1000


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] with its 95% interval."""

    value: float
    low: float
    high: float
    count: int = 0  # of questions

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True)
class Hits:
    """Which questions about which pictures were answered correctly."""

    pictures: NDArray[np.int64]  # (Q,) number of each question's picture
    classes: NDArray[np.int64]  # (Q,) number of the right answer's class; all 0 if classes do not count
    hits: NDArray[np.bool_]  # (Q,)

    @cached_property
    def draws(self) -> NDArray[np.float64]:
        """(DRAWS,) shares, each over as many pictures as there are, drawn with replacement."""
        classes, kinds = np.unique(self.classes, return_inverse=True)
        pictures, number = np.unique(self.pictures, return_inverse=True)
        right, asked = np.zeros((2, len(pictures), len(classes)), np.float32)
        np.add.at(asked, (number, kinds), 1)
        np.add.at(right, (number, kinds), self.hits)
        times = _times(len(pictures))
        drawn = times @ asked  # (DRAWS, classes): questions about each
        shares = np.where(drawn > 0, times @ right / np.maximum(drawn, 1), np.nan)
        return np.asarray(np.nanmean(shares, axis=1), np.float64)


def hits(records: Sequence[Record], column: Column, keys: dict[str, int]) -> Hits:
    """The questions that a column counts in the records of one model and way; `keys` numbers the pictures."""
    found = [
        (keys[r.key], a.right, a.rank < column.k)
        for r in records
        for a in r.answers
        if not column.groups or a.group in column.groups
    ]
    pictures, right, answered = zip(*found, strict=True) if found else ((), (), ())
    classes = np.unique(right, return_inverse=True)[1] if column.per_class and right else np.zeros(len(right))
    return Hits(np.array(pictures, np.int64), classes.astype(np.int64), np.array(answered, bool))


def estimate(found: Hits) -> Estimate | None:
    """The share over questions, or the mean of the shares of the classes; None if there are no questions."""
    if not len(found.hits):
        return None
    low, high = np.percentile(found.draws, [2.5, 97.5])
    return Estimate(_share(found), float(low), float(high), len(found.hits))


def difference(one: Hits, other: Hits) -> Estimate | None:
    """How much larger the share of `one` is, with its interval, drawing the same pictures for both.

    Raises:
        ValueError: the two answer different questions.
    """
    if not (np.array_equal(one.pictures, other.pictures) and np.array_equal(one.classes, other.classes)):
        raise ValueError("these are answers to different questions: compare ways on the same samples")
    if not len(one.hits):
        return None
    low, high = np.percentile(one.draws - other.draws, [2.5, 97.5])
    return Estimate(_share(one) - _share(other), float(low), float(high), len(one.hits))


@lru_cache(maxsize=8)  # for 12,000 pictures, one entry takes 48 MB and half a second
def _times(pictures: int) -> NDArray[np.float32]:
    """(DRAWS, pictures): how often each picture is drawn."""
    rng = np.random.default_rng(0)
    return rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=DRAWS).astype(np.float32)


def _share(found: Hits) -> float:
    asked = np.bincount(found.classes)
    right = np.bincount(found.classes, found.hits)
    return float(np.mean(right[asked > 0] / asked[asked > 0]))
