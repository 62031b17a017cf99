"""Turn GRIT-style shards into shards that the trainer reads: boxes become masks (the paper's first kind of data)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, get_args

from . import fingerprints, given, grit, segmenters
from .filters import Distinct, Duplicates, Fitting, Named, Sourced
from .ledger import Ledger
from .packing import tar_writer, write
from .samples import Sample, Stage, batches
from .segment import Segment
from .segmenters import Segmenter


@dataclass(frozen=True)
class AnnotateGrounding:
    """The settings of `annotate-grounding`; the command's `--help` explains each.

    In Python, the segmenter may also be a `Segmenter`, or a function without arguments that makes one.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: the segmenter is of another kind.
    """

    segmenter: str | Segmenter | Callable[[], Segmenter]
    score: float = Named.score
    words: tuple[int, int] = Named.words
    area: tuple[float, float] = Fitting.area
    iou: float = Fitting.iou
    duplicates: Duplicates = "both"
    require: tuple[str, ...] = ()
    batch: int = 8  # pictures in memory at a time; nothing in the files depends on it
    device: str | None = None

    def __post_init__(self) -> None:
        given.check("segmenter", self.segmenter)
        for name, (low, high) in (("words", self.words), ("area", self.area)):
            if not 0 <= low <= high:
                raise ValueError(f"{name} is {(low, high)}, expected the least and the most, neither below 0")
        if not 0 <= self.iou <= 1:
            raise ValueError(f"iou is {self.iou}, expected 0 to 1")
        if self.duplicates not in get_args(Duplicates):
            raise ValueError(f"duplicates is {self.duplicates!r}, expected one of {', '.join(get_args(Duplicates))}")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, expected at least 1")

    def settings(self) -> dict[str, Any]:
        """Return what the output depends on, for `settings.json`. Hashes the files of the models."""
        names = [entry.name for entry in fields(self) if entry.name not in ("batch", "device")]
        kept = {name: getattr(self, name) for name in names} | {"segmenter": given.described(self.segmenter)}
        named = isinstance(self.segmenter, str)
        kept[f"{fingerprints.WEIGHTS}segmenter"] = segmenters.weights(str(self.segmenter)) if named else None
        return {"command": "annotate-grounding", **kept}

    def prepare(self) -> Grounding:
        """Load the segmenter.

        Raises:
            ImportError: webdataset is not installed.
            Other errors: as `segmenters.find`.
        """
        tar_writer()
        return Grounding(self, given.made("segmenter", self.segmenter, lambda name: segmenters.find(name, self.device)))


@dataclass
class Grounding:
    """`AnnotateGrounding` with its segmenter loaded: writes a shard of each shard."""

    work: AnnotateGrounding
    segmenter: Segmenter
    suffix: str = ".tar"
    models: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.models = {"segmenter": self.segmenter.identity}

    def stages(self) -> list[Stage]:
        """Return new stages, for one shard: `Distinct` remembers the pictures of the shard."""
        work = self.work
        then: list[Stage] = [Named(work.score, work.words), Segment(self.segmenter), Fitting(work.area, work.iou)]
        return [Sourced(work.require), Distinct(work.duplicates, then)]

    def __call__(self, shard: Path, file: BinaryIO, ledger: Ledger) -> None:
        write(self._annotated(shard, ledger), file, ledger)

    def _annotated(self, shard: Path, ledger: Ledger) -> Iterator[Sample]:
        stages = self.stages()
        for samples in batches(grit.read(shard, ledger, self.work.require), self.work.batch):
            for stage in stages:
                samples = stage(samples, ledger)
            ledger.pictures["written"] += len(samples)
            yield from samples
