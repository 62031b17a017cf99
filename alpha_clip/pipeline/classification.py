"""Class folders to shards that the trainer reads: objects and their names (the paper's second kind of data)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from ..evaluation import subjects
from ..evaluation.subjects import Subject
from ..hashes import fingerprint
from ..training.records import BadSample
from ..training.shards import IMAGES
from . import captioners, fingerprints, folders, mask_generators, segmenters
from .caption import Background, Caption, Join
from .captioners import Captioner
from .cutting import CONTEXT, CutOut
from .filters import OVERLAP, Apart, Distinct, Sized, mask_of
from .ledger import Ledger
from .mask_generators import MaskGenerator
from .packing import tar_writer, write
from .samples import Sample, Stage, Target, batches
from .scoring import Best, Score
from .segment import SegmentAll

Copies = Literal["picture", "keep"]


@dataclass(frozen=True)
class AnnotateClassification:
    """The settings; each is explained by the command's `--help`. `names` are those of the folders.

    Raises:
        ValueError: a setting is out of its range.
    """

    segmenter: str
    captioner: str
    model: str = "tiny"
    names: Mapping[str, str] | None = None
    background: Background = "white"
    keep: int = 460  # 460 000 pairs, says the paper, of ImageNet's 1000 classes
    points: int = 16
    area: tuple[float, float] = (0.001, 0.95)
    score: float = 0.0
    overlap: float = OVERLAP
    context: float = CONTEXT
    duplicates: Copies = "picture"
    batch: int = 8  # objects that are captioned at a time
    device: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.area[0] <= self.area[1]:
            raise ValueError(f"area is {self.area}, expected the least and the most, neither below 0")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap is {self.overlap}, expected 0 to 1")
        for name in ("keep", "points", "context", "batch"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name, choices in (("background", get_args(Background)), ("duplicates", get_args(Copies))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")

    def settings(self) -> dict[str, Any]:
        """What the files depend on. Reads the models' files, for their hashes."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("batch", "device")}
        kept["captioner"] = captioners.settings(self.captioner)
        if self.names is not None:  # ImageNet-21k has many
            kept["names"] = hashlib.sha256(json.dumps(dict(self.names), sort_keys=True).encode()).hexdigest()
        kept[f"{fingerprints.WEIGHTS}segmenter"] = segmenters.weights(self.segmenter)
        kept[f"{fingerprints.WEIGHTS}model"] = fingerprints.of_clip(self.model)
        kept[f"{fingerprints.WEIGHTS}captioner"] = captioners.weights(self.captioner)
        return {"command": "annotate-classification", **kept}

    def prepare(self) -> Classification:
        """Load the three models.

        Raises:
            ImportError: webdataset is not installed. Others: as `mask_generators.find`, `evaluation.subjects.find` and
                `captioners.find`.
        """
        tar_writer()
        generator = mask_generators.find(self.segmenter, self.device, self.points)
        subject = subjects.find(self.model, self.device, alone=True)
        return Classification(self, generator, subject, captioners.find(self.captioner, self.device))


@dataclass
class Classification:
    """The work with its models loaded: the folder of a class in, a shard out.

    Each picture is read once for its masks and their scores, and those with a mask among the best once more. In memory
    are a picture, the best masks, and then a batch of pictures.
    """

    work: AnnotateClassification
    generator: MaskGenerator
    subject: Subject
    captioner: Captioner
    suffix: str = ".tar"
    models: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        model = f"{self.work.model} {fingerprint(self.subject.model)}"
        self.models = {"segmenter": self.generator.identity, "model": model, "captioner": self.captioner.identity}

    def __call__(self, shard: Path, file: BinaryIO, ledger: Ledger) -> None:
        name, files = folders.class_name(shard, self.work.names), folders.files_in(shard)
        pictures = [path for path in files if folders.is_picture(path)]
        if others := len(files) - len(pictures):
            ledger.pictures.update({"read": others, "no picture by its name": others})
        if not pictures:
            ledger.pictures["read"] += 1
            ledger.reject(BadSample(shard.name, f"the folder holds no pictures, {', '.join(IMAGES)}", "empty class"))
        best = self._best(shard, pictures, name, ledger)
        write(self._with_words(shard, pictures, best, name, ledger), file, ledger)

    def _best(self, shard: Path, pictures: Sequence[Path], name: str, ledger: Ledger) -> dict[int, tuple[Target, ...]]:
        """The regions whose scores are the highest, by the number of their picture."""
        work = self.work
        stages: list[Stage] = [SegmentAll(self.generator, name), Sized(work.area)]
        stages += [Score(self.subject, work.score, work.context), Apart(work.overlap)]
        distinct = Distinct(work.duplicates, stages)
        best, shown = Best(work.keep), 0
        for number, path in enumerate(pictures):
            ledger.pictures["read"] += 1
            try:
                samples = [folders.read(shard, path)]
            except BadSample as error:
                ledger.reject(error)
                continue
            for sample in distinct(samples, ledger):
                best.add(number, sample.targets, ledger)
                shown += 1
        found = best.pictures()
        if out := shown - len(found):
            ledger.pictures[f"no mask among the best {work.keep} of the class"] += out
        return found

    def _with_words(
        self, shard: Path, pictures: Sequence[Path], best: Mapping[int, tuple[Target, ...]], name: str, ledger: Ledger
    ) -> Iterator[Sample]:
        """The samples as they are written.

        Keys are CLASS/NUMBER, not the pictures' names, in which a dot would end WebDataset's key.
        """
        caption = Caption(self.captioner, context=self.work.context, chunk=self.work.batch)
        cut = CutOut(self.work.context)
        keys = {folders.source(shard, pictures[number]): f"{shard.name}/{number:06d}" for number in best}
        for samples in batches(_again(shard, pictures, best, ledger), self.work.batch):
            samples = Join(name)(caption(samples, ledger), ledger)
            ledger.pictures["written"] += len(samples)
            for sample in samples:
                fields = {"class": name, "source": sample.key}
                labelled = [replace(sample, key=keys[sample.key], caption=name, fields=fields)]
                yield from cut(labelled, ledger) if self.work.background == "white" else labelled


def _again(
    shard: Path, pictures: Sequence[Path], best: Mapping[int, tuple[Target, ...]], ledger: Ledger
) -> Iterator[Sample]:
    """The pictures that have regions among the best, with these."""
    for number, targets in best.items():
        try:
            sample = folders.read(shard, pictures[number])
            if any(mask_of(sample, target).rle["size"] != [*sample.image.size[::-1]] for target in targets):
                reason = "it has another size than a while ago: leave the pictures alone, and run again"
                raise BadSample(sample.key, reason, "picture changed")
        except BadSample as error:
            ledger.reject(error)
            ledger.regions["of pictures left out"] += len(targets)
        else:
            yield replace(sample, targets=targets)
