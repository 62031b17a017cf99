"""Turn class folders into shards that the trainer reads: objects and names (the paper's second kind of data)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from ..catalogue import BUNDLED
from ..evaluation import subjects
from ..evaluation.subjects import Subject
from ..hashes import fingerprint
from ..training.records import BadSample
from ..training.shards import IMAGES
from . import captioners, fingerprints, folders, given, mask_generators, segmenters
from .caption import Background, Caption, Join
from .captioners import Captioner
from .cutting import CONTEXT, CutOut
from .filters import OVERLAP, Apart, Distinct, Sized, mask_of
from .ledger import Ledger
from .mask_generators import POINTS, MaskGenerator
from .packing import tar_writer, write
from .samples import Sample, Stage, Target, batches
from .scoring import Best, Score
from .segment import SegmentAll

Copies = Literal["picture", "keep"]


@dataclass(frozen=True)
class AnnotateClassification:
    """The settings of `annotate-classification`; the command's `--help` explains each. `names` maps folders to names.

    In Python, the segmenter may also be a `MaskGenerator`, the captioner a `Captioner`, or each a function without
    arguments that makes one.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: the segmenter or the captioner is of another kind.
    """

    segmenter: str | MaskGenerator | Callable[[], MaskGenerator]
    captioner: str | Captioner | Callable[[], Captioner]
    model: str = BUNDLED
    names: Mapping[str, str] | None = None
    background: Background = "white"
    keep: int = 460  # 460 000 pairs, says the paper, of ImageNet's 1000 classes
    points: int = POINTS
    area: tuple[float, float] = Sized.area
    score: float = 0.0
    overlap: float = OVERLAP
    context: float = CONTEXT
    duplicates: Copies = "picture"
    batch: int = 8  # objects that are captioned at a time
    device: str | None = None

    def __post_init__(self) -> None:
        given.check("segmenter", self.segmenter)
        given.check("captioner", self.captioner)
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
        """Return what the output depends on, for `settings.json`. Hashes the files of the models."""
        kept = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        del kept["batch"], kept["device"]
        segmenter, captioner = self.segmenter, self.captioner
        kept["segmenter"] = given.described(segmenter)
        kept["captioner"] = captioners.settings(captioner) if isinstance(captioner, str) else given.described(captioner)
        if self.names is not None:  # ImageNet-21k has many
            kept["names"] = hashlib.sha256(json.dumps(dict(self.names), sort_keys=True).encode()).hexdigest()
        kept[f"{fingerprints.WEIGHTS}segmenter"] = segmenters.weights(segmenter) if isinstance(segmenter, str) else None
        kept[f"{fingerprints.WEIGHTS}model"] = fingerprints.of_clip(self.model)
        kept[f"{fingerprints.WEIGHTS}captioner"] = captioners.weights(captioner) if isinstance(captioner, str) else None
        return {"command": "annotate-classification", **kept}

    def prepare(self) -> Classification:
        """Load the three models.

        Raises:
            ImportError: webdataset is not installed.
            Other errors: as `mask_generators.find`, `evaluation.subjects.find` and `captioners.find`.
        """
        tar_writer()
        generator = given.made(
            "segmenter", self.segmenter, lambda name: mask_generators.find(name, self.device, self.points)
        )
        subject = subjects.find(self.model, self.device, alone=True)
        captioner = given.made("captioner", self.captioner, lambda name: captioners.find(name, self.device))
        return Classification(self, generator, subject, captioner)


@dataclass
class Classification:
    """`AnnotateClassification` with its models loaded: writes a shard of the folder of each class.

    Each picture is read once for its masks and their scores, and those with a mask among the best once more. Memory
    holds one picture and the best masks, and then a batch of pictures.
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
        """Return the regions with the highest scores, by the number of their picture."""
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
        """Yield the samples that are written, with their captions.

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
    """Read the pictures that have regions among the best once more, and yield them with these regions."""
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
