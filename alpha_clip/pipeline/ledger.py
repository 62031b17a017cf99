"""The account of all that was read: counts, histograms, and each piece of bad input with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..training.records import BadSample

BINS = 20


@dataclass(frozen=True)
class Reject:
    """A piece of bad input: a region, by its number in its picture, or with ``region`` None a sample or shard."""

    key: str
    problem: str  # the kind of problem, for counting
    reason: str
    region: int | None = None


@dataclass
class Ledger:
    """Counts of pictures and of regions. In both, "read" is "written" plus all other counts."""

    pictures: Counter[str] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name: "low", "high", "counts"
    rejects: list[Reject] = field(default_factory=list)
    hashes: bytearray | None = None  # marks (`alike.marked`) of the pictures written; None: a task that writes none
    shards: int | None = None  # number of shards in the folder; None: the ledger is of one shard
    duplicates: int | None = None  # duplicates among the pictures written in all shards; None: not counted

    def reject(self, error: BadSample, region: int | None = None) -> None:
        """Record bad input: a picture, or one region of a picture."""
        self.rejects.append(Reject(error.key, error.problem, error.reason, region))
        counts = self.pictures if region is None else self.regions
        counts[f"rejected: {error.problem}"] += 1

    def drop(self, why: str, regions: int) -> None:
        """Count a picture that a filter leaves out, with its regions."""
        self.pictures[why] += 1
        if regions:
            self.regions["of pictures left out"] += regions

    def measure(self, name: str, value: float, high: float = 1.0) -> None:
        """Count a value in a histogram of `BINS` bins from 0 to `high`; values above fall into the last bin."""
        histogram = self.histograms.setdefault(name, {"low": 0.0, "high": high, "counts": [0] * BINS})
        histogram["counts"][min(max(int(value / high * BINS), 0), BINS - 1)] += 1

    def summary(self) -> dict[str, Any]:
        """Counts and histograms for JSON, in an order that does not depend on what came first."""
        return {
            "pictures": _sorted(self.pictures),
            "regions": _sorted(self.regions),
            "histograms": dict(sorted(self.histograms.items())),
        }

    def add(self, summary: dict[str, Any]) -> None:
        """Add the `summary` of another ledger."""
        self.pictures.update(summary["pictures"])
        self.regions.update(summary["regions"])
        for name, more in summary["histograms"].items():
            mine = self.histograms.setdefault(name, more | {"counts": [0] * BINS})
            mine["counts"] = [a + b for a, b in zip(mine["counts"], more["counts"], strict=True)]

    def lines(self) -> list[dict[str, Any]]:
        """The rejects as JSON records."""
        return [asdict(reject) for reject in self.rejects]


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    left_out = sorted(name for name in counts if name not in ("read", "written"))
    return {name: counts.get(name, 0) for name in ("read", *left_out, "written")}
