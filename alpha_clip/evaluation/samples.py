"""What is asked about a picture's regions, and of which pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .records import Record
from .subjects import Subject
from .ways import Way


def unique_keys(names: Sequence[str]) -> list[str]:
    """The names, and, where one came before, its number: a picture may be listed twice, and shards may share keys.

    >>> unique_keys(["a", "b", "a", "a"])
    ['a', 'b', 'a, 2', 'a, 3']
    """
    taken, numbers = set(names), Counter[str]()
    keys = []
    for name in names:
        numbers[name] += 1
        key = name
        if numbers[name] > 1:
            while (key := f"{name}, {numbers[name]}") in taken:
                numbers[name] += 1
            taken.add(key)
        keys.append(key)
    return keys


class UnusableSample(ValueError):
    """A sample that cannot be asked about; the others can."""


@dataclass(frozen=True)
class Naming:
    """Which of these names is that of the region?"""

    region: int  # its number among the sample's masks
    names: tuple[str, ...]  # one tuple for all questions with the same names saves time
    answer: int  # number of the right one
    group: str = ""  # empty: the sample's


@dataclass(frozen=True)
class Referring:
    """Which of the sample's regions is meant by this phrase?"""

    phrase: str
    answers: frozenset[int]  # numbers of the regions that are right; empty: none is, and every choice is wrong
    group: str = ""  # empty: the sample's
    regions: tuple[int, ...] | None = None  # numbers of those to choose from; None: all


@dataclass(frozen=True)
class Matching:
    """Which of all phrases of the task is the region's, and which of all regions is the phrase's?

    Answered by `Task.finish`, when the features of all samples are there; until then a record keeps them.
    """

    region: int  # its number among the sample's masks
    phrase: str


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture, its regions, and what is asked about them."""

    key: str  # its name in its data set
    image: Image.Image  # RGB, upright
    masks: NDArray[np.float32]  # (K, H, W) in [0, 1], each with some above 0.5
    questions: tuple[Question, ...]
    group: str = ""  # the part of the data set that it belongs to


Question = Naming | Referring | Matching


@dataclass(frozen=True)
class Column:
    """A figure to report: the share of questions whose right answer is among the `k` best."""

    title: str
    groups: tuple[str, ...] = ()  # of questions with one of these; none: of all
    k: int = 1
    per_class: bool = False  # the mean over what is right ("cat", ...) of its own share


@dataclass(frozen=True)
class Task:
    """A data set and its questions. Samples are read one by one, when they are needed."""

    name: str
    keys: Sequence[str]  # of all samples, each once
    read: Callable[[int], Sample]  # by number; raises UnusableSample
    columns: Sequence[Column]
    templates: Sequence[str] = ("a photo of a {}.",)  # around the names of `Naming`; phrases are taken as they are
    identity: Mapping[str, Any] = field(default_factory=dict)  # what makes it this data set: files, hashes, options
    pictures: Sequence[str] = ()  # what they are to other tasks, such as files, to tell if some are in both; none: keys
    notes: Sequence[str] = ()  # for the reader of the results: what was left out, what to compare with
    finish: Callable[[Sequence[Record], Sequence[Subject], Sequence[Way]], list[Record]] | None = None
