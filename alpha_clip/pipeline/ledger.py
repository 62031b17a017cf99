"""What became of all that was read: counts, histograms, and each piece of bad input with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..training.records import BadSample

BINS = 20


@dataclass(frozen=True)
class Reject:
    """Bad input. ``region`` is its number in its picture; None: the whole sample, or what is left of a shard."""

    key: str
    problem: str  # the kind, for counting
    reason: str
    region: int | None = None


@dataclass
class Ledger:
    """Counts of pictures and of regions. What was read is what was written plus all the others, in both."""

    pictures: Counter[str] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name: "low", "high", "counts"
    rejects: list[Reject] = field(default_factory=list)
    hashes: bytearray | None = None  # of each picture that was written, in a shard of pictures: `alike.marked`
    duplicates: int | None = None  # among the pictures written, of all shards; None: this is not of all

    def reject(self, error: BadSample, region: int | None = None) -> None:
        """Note bad input: a picture, or one region of a picture."""
        self.rejects.append(Reject(error.key, error.problem, error.reason, region))
        counts = self.pictures if region is None else self.regions
        counts[f"rejected: {error.problem}"] += 1

    def drop(self, why: str, regions: int) -> None:
        """Count a picture that a filter leaves out, with its regions."""
        self.pictures[why] += 1
        if regions:
            self.regions["of pictures left out"] += regions

    def measure(self, name: str, value: float, high: float = 1.0) -> None:
        """Count a value in the histogram of that name, `BINS` bins from 0 to `high`; the last one has all above."""
        histogram = self.histograms.setdefault(name, {"low": 0.0, "high": high, "counts": [0] * BINS})
        histogram["counts"][min(max(int(value / high * BINS), 0), BINS - 1)] += 1

    def summary(self) -> dict[str, Any]:
        """All but the rejects, as JSON can hold it, in an order that does not depend on what came first."""
        return {
            "pictures": _sorted(self.pictures),
            "regions": _sorted(self.regions),
            "histograms": dict(sorted(self.histograms.items())),
        }

    def add(self, summary: dict[str, Any]) -> None:
        """Add what another ledger's `summary` says."""
        self.pictures.update(summary["pictures"])
        self.regions.update(summary["regions"])
        for name, more in summary["histograms"].items():
            mine = self.histograms.setdefault(name, more | {"counts": [0] * BINS})
            mine["counts"] = [a + b for a, b in zip(mine["counts"], more["counts"], strict=True)]

    def lines(self) -> list[dict[str, Any]]:
        """The rejects, as JSON can hold them."""
        return [asdict(reject) for reject in self.rejects]


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    left_out = sorted(name for name in counts if name not in ("read", "written"))
    return {name: counts.get(name, 0) for name in ("read", *left_out, "written")}
