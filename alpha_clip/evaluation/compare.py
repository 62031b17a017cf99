"""Compare two runs of the same task on the samples that both hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import metrics, results
from .metrics import Estimate, Hits
from .results import Results
from .run import Pair
from .samples import Column
from .tables import Cell, Table


@dataclass(frozen=True)
class Comparison:
    """Two runs and the samples they share."""

    one: Results
    other: Results
    keys: Sequence[str]  # of the samples that every way of both runs answered
    pairs: Sequence[tuple[Pair, Pair]]  # (model, way) of the first run, and its counterpart in the second

    @property
    def columns(self) -> list[Column]:
        """The columns that both runs have."""
        return [column for column in self.one.columns if column in self.other.columns]

    @property
    def questions(self) -> int:
        first = next(iter(self.one.ways.values()))
        return sum(len(first[key].answers) for key in self.keys)

    @property
    def alone(self) -> dict[str, list[str]]:
        """Models and ways without a counterpart, under "first" or "second"."""
        sides = {"first": (self.one, {a for a, _ in self.pairs}), "second": (self.other, {b for _, b in self.pairs})}
        alone = {key: [", ".join(p) for p in side.ways if p not in seen] for key, (side, seen) in sides.items()}
        return {key: names for key, names in alone.items() if names}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: i for i, key in enumerate(self.keys)}

    def hits(self, side: Results, pair: Pair, column: Column) -> Hits:
        return metrics.hits([side.ways[pair][key] for key in self.keys], column, self._numbers)

    @cached_property
    def differences(self) -> Mapping[tuple[Pair, Column], Estimate | None]:
        """How much higher the second run's share is, with the same bootstrap draws for both."""
        return {
            (a, column): metrics.difference(self.hits(self.other, b, column), self.hits(self.one, a, column))
            for a, b in self.pairs
            for column in self.columns
        }

    def table(self) -> Table:
        """The differences of all columns."""
        titles = ["way", *(column.title for column in self.columns)]
        rows: list[list[Cell]] = [
            [name(a, b), *(self.differences[a, column] for column in self.columns)] for a, b in self.pairs
        ]
        note = (
            f"Second run minus first, paired on the {len(self.keys):,} samples ({self.questions:,} questions) that are "
            "in both; 95% intervals by bootstrap over pictures."
        )
        return Table("Difference", titles, rows, note, signed=True)

    def side_by_side(self, column: Column) -> Table:
        """One column of both runs, with the number of questions that only one of them answered right."""
        rows: list[list[Cell]] = []
        for a, b in self.pairs:
            one, other = self.hits(self.one, a, column), self.hits(self.other, b, column)
            lost, gained = int((one.hits & ~other.hits).sum()), int((other.hits & ~one.hits).sum())
            estimates = [metrics.estimate(one), metrics.estimate(other), self.differences[a, column]]
            rows.append([name(a, b), *estimates, str(lost), str(gained)])
        titles = ["way", "first", "second", "difference", "right in the first only", "right in the second only"]
        return Table(column.title, titles, rows)


def name(one: Pair, other: Pair) -> str:
    """``"tiny, crop"``, or ``"tiny / mine, crop"`` if the models have different names."""
    return ", ".join(one) if one == other else f"{one[0]} / {other[0]}, {one[1]}"


def read(one: Path, other: Path) -> Comparison:
    """Read two results.json files.

    Models of the same name are paired; those named in one run only are paired in their order.

    Raises:
        OSError: see `results.read`.
        ValueError: see `results.read`; or the runs are of different tasks or data, share no sample, column or way, or
            asked different questions about the same samples.
    """
    a, b = results.read(one), results.read(other)
    _same_task(a, b)
    there = set(b.keys)
    keys = [key for key in a.keys if key in there]
    if not keys:
        raise ValueError(
            f"{one} and {other} share no sample: {len(a.keys)} and {len(b.keys)} others; compare runs of the same data"
        )
    _same_questions(a, b, keys)
    comparison = Comparison(a, b, keys, _pairs(a, b))
    if not comparison.columns:
        raise ValueError(
            f"{one} and {other} share no column: {_titles(a)} against {_titles(b)}; compare runs of the same data"
        )
    if not comparison.pairs:
        raise ValueError(
            f"{one} and {other} share no way of looking: {_ways(a)} against {_ways(b)}; compare runs with --methods in "
            "common"
        )
    return comparison


def _same_task(a: Results, b: Results) -> None:
    if a.task != b.task:
        raise ValueError(
            f"{a.path} is of the task {a.task!r}, {b.path} of {b.task!r}: expected two runs of the same task"
        )
    about, other = a.identity.get("task", {}), b.identity.get("task", {})
    apart = [key for key in {**about, **other} if about.get(key) != other.get(key)]
    if apart:
        said = "; ".join(f"{key} is {about.get(key)!r} and {other.get(key)!r}" for key in apart)
        raise ValueError(f"{a.path} and {b.path} are of different data or options, expected the same: {said}")


def _same_questions(a: Results, b: Results, keys: Sequence[str]) -> None:
    first, second = next(iter(a.ways.values())), next(iter(b.ways.values()))
    for key in keys:
        one, other = ([(q.right, q.group) for q in side[key].answers] for side in (first, second))
        if one != other:
            raise ValueError(
                f"{a.path} and {b.path} asked other questions about {key!r}, {one} and {other}: expected the same data "
                "and version of this package"
            )


def _pairs(a: Results, b: Results) -> list[tuple[Pair, Pair]]:
    mine, theirs = (list(dict.fromkeys(model for model, _ in side.ways)) for side in (a, b))
    of = {model: model for model in mine if model in theirs}
    left = [[m for m in models if m not in of] for models in (mine, theirs)]
    of |= dict(zip(*left, strict=False))
    return [((m, way), (of[m], way)) for m, way in a.ways if m in of and (of[m], way) in b.ways]


def _titles(side: Results) -> str:
    return ", ".join(column.title for column in side.columns)


def _ways(side: Results) -> str:
    return "; ".join(", ".join(pair) for pair in side.ways)


def facts(comparison: Comparison) -> dict[str, Any]:
    """How, with what and on what each run was made, for the reader."""
    return {
        str(side.path): {"made": side.made, **{k: v for k, v in side.identity.items() if k != "task"}}
        for side in (comparison.one, comparison.other)
    }
