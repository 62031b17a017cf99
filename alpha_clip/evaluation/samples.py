"""Questions about the regions of pictures, and the tasks that hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..zero_shot import TEMPLATES
from .records import Record
from .subjects import Subject
from .ways import Way


def unique_keys(names: Sequence[str]) -> list[str]:
    """Number repeated names, so that every key is unique: a picture may be listed twice, and shards may share keys.

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
    """A sample that cannot be used, though the others can."""


@dataclass(frozen=True)
class Naming:
    """Which of these names is the region's?"""

    region: int  # its number among the sample's masks
    names: tuple[str, ...]  # sharing one tuple between questions saves time
    answer: int  # index of the right name
    group: str = ""  # empty: the sample's


@dataclass(frozen=True)
class Referring:
    """Which of the sample's regions does this phrase mean?"""

    phrase: str
    answers: frozenset[int]  # numbers of the right regions; if empty, every choice is wrong
    group: str = ""  # empty: the sample's
    regions: tuple[int, ...] | None = None  # numbers of the regions to choose from; None: all


@dataclass(frozen=True)
class Matching:
    """Which of all phrases of the task is the region's, and which of all regions is the phrase's?

    `Task.finish` answers it once the features of all samples are there; until then the records keep them.
    """

    region: int  # its number among the sample's masks
    phrase: str


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture, its regions, and the questions about them."""

    key: str  # its name in its data set
    image: Image.Image  # RGB, upright
    masks: NDArray[np.float32]  # (K, H, W) in [0, 1], each with a pixel above 0.5
    questions: tuple[Question, ...]
    group: str = ""  # the part of the data set it belongs to


Question = Naming | Referring | Matching


@dataclass(frozen=True)
class Column:
    """A figure to report: the share of questions whose right answer is among the `k` best."""

    title: str
    groups: tuple[str, ...] = ()  # count only questions of these groups; empty: all
    k: int = 1
    per_class: bool = False  # average the shares of the classes, that is of equal right answers ("cat", ...)


@dataclass(frozen=True)
class Task:
    """A data set and its questions. Samples are read one at a time, when needed."""

    name: str
    keys: Sequence[str]  # of all samples, without repeats
    read: Callable[[int], Sample]  # by index in `keys`; may raise UnusableSample
    columns: Sequence[Column]
    templates: Sequence[str] = TEMPLATES  # for the names of `Naming`; phrases are used as they are
    identity: Mapping[str, Any] = field(default_factory=dict)  # what tells it from other data: files, hashes, options
    pictures: Sequence[str] = ()  # names, such as paths, that show if two tasks share pictures; empty: the keys
    notes: Sequence[str] = ()  # for the reader of the results, such as what was left out
    finish: Callable[[Sequence[Record], Sequence[Subject], Sequence[Way]], list[Record]] | None = None
