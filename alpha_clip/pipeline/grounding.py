"""GRIT-style shards to shards that the trainer reads: boxes become masks (the paper's first kind of data)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, get_args

from . import fingerprints, grit, segmenters
from .filters import Distinct, Duplicates, Fitting, Named, Sourced
from .ledger import Ledger
from .packing import tar_writer, write
from .samples import Sample, Stage, batches
from .segment import Segment
from .segmenters import Segmenter


@dataclass(frozen=True)
class AnnotateGrounding:
    """The settings; each is explained by the command's `--help`.

    Raises:
        ValueError: a setting is out of its range.
    """

    segmenter: str
    score: float = 0.0
    words: tuple[int, int] = (1, 30)
    area: tuple[float, float] = (0.001, 0.95)
    iou: float = 0.5
    duplicates: Duplicates = "both"
    require: tuple[str, ...] = ()
    batch: int = 8  # pictures in memory at a time; nothing in the files depends on it
    device: str | None = None

    def __post_init__(self) -> None:
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
        """What the files depend on. Reads the models' files, for their hashes."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("batch", "device")}
        kept[f"{fingerprints.WEIGHTS}segmenter"] = segmenters.weights(self.segmenter)
        return {"command": "annotate-grounding", **kept}

    def prepare(self) -> Grounding:
        """Load the segmenter.

        Raises:
            ImportError: webdataset is not installed. Others: as `segmenters.find`.
        """
        tar_writer()
        return Grounding(self, segmenters.find(self.segmenter, self.device))


@dataclass
class Grounding:
    """The work with its segmenter loaded: a shard in, a shard out."""

    work: AnnotateGrounding
    segmenter: Segmenter
    suffix: str = ".tar"
    models: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.models = {"segmenter": self.segmenter.identity}

    def stages(self) -> list[Stage]:
        """New ones for each shard: `Distinct` remembers."""
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
