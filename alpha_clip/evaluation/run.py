"""Put the questions of a task to models that look in several ways, and turn the answers into figures."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..transforms import RegionLost
from . import metrics
from .metrics import Hits
from .records import Answer, Journal, Record, packed
from .samples import Column, Matching, Naming, Question, Sample, Task, UnusableSample
from .subjects import Subject
from .tables import Cell, Finding, Table
from .ways import RegionFeatures, Way, look

Pair = tuple[str, str]  # names of a model and a way
_TOP = 5  # best names that a record keeps
UNKNOWN = -1  # the rank of an answer that waits for other samples


@dataclass(frozen=True)
class Run:
    """All answers to a task."""

    task: Task
    identity: Mapping[str, Any]  # what tells the task and the models from others
    records: Sequence[Record]
    unusable: Mapping[str, str]  # samples that could not be asked about, and why
    findings: Sequence[Finding] = field(default_factory=list)

    @cached_property
    def _of(self) -> dict[Pair, list[Record]]:
        found: dict[Pair, list[Record]] = {}
        for record in self.records:
            found.setdefault((record.model, record.way), []).append(record)
        return found

    @cached_property
    def _hits(self) -> dict[tuple[Column, str, str], Hits]:
        return {}

    def of(self, model: str, way: str) -> list[Record]:
        return self._of.get((model, way), [])

    def ways(self) -> list[Pair]:
        """(model, way) pairs by name, in the order in which they were run."""
        return list(self._of)

    def label(self, pair: Pair) -> str:
        """``"tiny, crop"``, or ``"crop"`` if there is only one model."""
        return ", ".join(pair) if len({model for model, _ in self.ways()}) > 1 else pair[1]

    def hits(self, column: Column, model: str, way: str) -> Hits:
        """The hits of one column, model and way; cached, as tables and report need them often."""
        if (column, model, way) not in self._hits:
            keys = {key: i for i, key in enumerate(self.task.keys)}
            records = sorted(self.of(model, way), key=lambda r: keys[r.key])
            self._hits[column, model, way] = metrics.hits(records, column, keys)
        return self._hits[column, model, way]

    def table(self) -> Table:
        """A row for each way; the last columns are its forwards, and its time as a multiple of the shortest."""
        rows, costs = [], {pair: cost(self.of(*pair)) for pair in self.ways()}
        least = min((seconds for _, seconds in costs.values()), default=1.0)
        for (model, way), (forwards, seconds) in costs.items():
            cells: list[Cell] = [self.label((model, way))]
            cells += [metrics.estimate(self.hits(column, model, way)) for column in self.task.columns]
            rows.append([*cells, f"{forwards:.2f}", f"{seconds / least:.1f}x"])
        titles = [column.title for column in self.task.columns]
        note = (
            "95% intervals by bootstrap over pictures. Forwards and time are for each mask; time relative to the least."
        )
        return Table(self.task.name, ["way", *titles, "forwards", "time"], rows, note)

    def differences(self) -> Table:
        """How much better each way is than the first one, paired by picture."""
        first, *others = self.ways()
        rows = []
        for pair in others:
            cells: list[Cell] = [self.label(pair)]
            for column in self.task.columns:
                cells.append(metrics.difference(self.hits(column, *pair), self.hits(column, *first)))
            rows.append(cells)
        titles = ["way", *(column.title for column in self.task.columns)]
        return Table(f"Difference to {self.label(first)}", titles, rows, signed=True)


def run(
    task: Task, subjects: Sequence[Subject], ways: Sequence[Way], folder: Path, chunk: int = 32, together: bool = False
) -> Run:
    """Ask every question whose answer is not in `folder` yet.

    Args:
        subjects: the models; each is asked only in the ways that fit it.
        chunk: masks at a time.
        together: also sum the scores of `members`, under their `sum_name`, in the ways that fit all of them; samples
            without a sum yet are asked about again.

    Raises:
        ValueError: `folder` holds another run; no sample can be used; no way fits any model; a key of the task or a
            name of a model is repeated; there is nothing to sum.
    """
    _check_each_once(task.keys, f"keys of the task {task.name}")
    _check_each_once([s.name for s in subjects], "names of models")
    pairs = [(s, way) for s in subjects for way in ways if way.fits(s)]
    if not pairs:
        raise ValueError(f"none of the models can look in {', '.join(w.name for w in ways)}: add a way such as 'crop'")
    summed = _to_sum(subjects, ways) if together else []
    about = {"name": task.name, "templates": list(task.templates), **task.identity}
    identity = {"task": about} | {f"model {s.name}": dict(s.identity) for s in subjects}
    journal = Journal(folder, identity)
    keys = set(task.keys)
    records = [record for record in journal.read() if record.key in keys]  # a larger run may have written here
    done = {record.id for record in records}
    unusable: dict[str, str] = {}
    wanted = {(s.name, way.name) for s, way in pairs}
    wanted |= {(sum_name(summed), way.name) for way in ways if summed and _fits_all(way, summed)}
    for number, key in enumerate(tqdm(task.keys, task.name, unit="sample")):
        if all((key, *pair) in done for pair in wanted):
            continue
        try:
            new = [r for r in _ask(task, task.read(number), pairs, chunk, summed) if r.id not in done]
        except (UnusableSample, RegionLost) as error:
            unusable[key] = str(error)
            continue
        journal.write(new)
        records += new
    # An earlier run may have used these samples in other ways; the ways compared must answer the same ones.
    records = [record for record in records if record.key not in unusable]
    if not records:
        raise ValueError(
            f"none of {len(task.keys)} samples can be used; the first: {next(iter(unusable.values()), '')}"
        )
    records = [r for r in records if (r.model, r.way) in wanted]
    return Run(task, identity, task.finish(records, subjects, ways) if task.finish else records, unusable)


def _check_each_once(names: Sequence[str], what: str) -> None:
    """Raise ValueError if a name is repeated: answers are stored by name and would be mixed up."""
    if double := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"{len(double)} of the {what} come more than once, such as {double[0]!r}: give each a name of its own"
        )


def members(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects whose scores may be summed: all but the plain CLIPs that others are compared with."""
    return [s for s in subjects if not any(other.base is s for other in subjects)]


def sum_name(summed: Sequence[Subject]) -> str:
    """The model name of a sum; it lists the members, so that different sums differ."""
    return f"together: {', '.join(s.name for s in summed)}"


def _to_sum(subjects: Sequence[Subject], ways: Sequence[Way]) -> list[Subject]:
    found = members(subjects)
    names = ", ".join(s.name for s in found)
    if len(found) < 2:
        raise ValueError(f"there is one model to sum the scores of, {names}: name another, or leave --together out")
    if not any(_fits_all(way, found) for way in ways):
        raise ValueError(f"no way is for all of {names}, whose scores are to be summed: add a way such as 'crop'")
    return found


def _fits_all(way: Way, subjects: Sequence[Subject]) -> bool:
    return all(way.fits(s) for s in subjects)


def _ask(
    task: Task, sample: Sample, pairs: Iterable[tuple[Subject, Way]], chunk: int, summed: Sequence[Subject]
) -> list[Record]:
    records: list[Record] = []
    scored: dict[str, list[tuple[RegionFeatures, list[Tensor]]]] = {}  # by way, from each member of the sum
    for subject, way in pairs:
        seen = look(subject.model, sample.image, sample.masks, way, chunk)
        scores = [_scores(task, subject, seen, question) for question in sample.questions]
        if subject in summed and _fits_all(way, summed):
            scored.setdefault(way.name, []).append((seen, scores))
        records.append(_record(sample, subject.name, way.name, [seen], scores))
    for name, found in scored.items():
        seen_by_all, all_scores = zip(*found, strict=True)
        sums = [torch.stack(parts).sum(dim=0) for parts in zip(*all_scores, strict=True)]
        records.append(_record(sample, sum_name(summed), name, seen_by_all, sums))
    return records


def _scores(task: Task, subject: Subject, seen: RegionFeatures, question: Question) -> Tensor:
    """(N,) scores of a region for each name, or of each region for a phrase; empty if they wait for other samples."""
    if isinstance(question, Matching):
        return torch.empty(0)
    if isinstance(question, Naming):
        return seen.scores(subject.names(question.names, task.templates).cpu())[question.region]
    return seen.scores(subject.texts([question.phrase]).cpu())[:, 0]


def _record(sample: Sample, model: str, way: str, seen: Sequence[RegionFeatures], scores: Sequence[Tensor]) -> Record:
    pairs = zip(sample.questions, scores, strict=True)
    answers = tuple(_answer(question, s, sample.group) for question, s in pairs)
    forwards, seconds = sum(s.forwards for s in seen), sum(s.seconds for s in seen)
    waits = len(seen) == 1 and any(isinstance(question, Matching) for question in sample.questions)
    features = tuple(map(packed, seen[0].features)) if waits else ()
    return Record(sample.key, model, way, answers, len(sample.masks), forwards, round(seconds, 6), features)


def _answer(question: Question, scores: Tensor, group: str) -> Answer:
    if isinstance(question, Matching):
        return Answer(question.phrase, UNKNOWN, question.region, group)
    group = question.group or group
    if isinstance(question, Naming):
        right = question.names[question.answer]
        order = ranking(scores, seed=f"{right} {question.region}")
        top = tuple(question.names[i] for i in order[:_TOP])
        return Answer(right, order.index(question.answer), question.region, group, top)
    there = list(range(len(scores))) if question.regions is None else list(question.regions)
    order = [there[i] for i in ranking(scores[there], seed=question.phrase)]
    rank = next((i for i, region in enumerate(order) if region in question.answers), len(order))
    return Answer(question.phrase, rank, order[0], group)


def ranking(scores: Tensor, seed: str) -> list[int]:
    """The indices of scores from highest to lowest. Ties are in random order, so that a guess is right by chance.

    Raises:
        ValueError: a score is not finite.
    """
    if not scores.isfinite().all():
        raise ValueError("the model gives features that are not finite: load it with dtype=torch.float32")
    lot = np.random.default_rng(zlib.crc32(seed.encode())).permutation(len(scores))
    return np.lexsort((lot, -scores.numpy())).tolist()


def cost(records: Sequence[Record]) -> tuple[float, float]:
    """Forwards per mask, and the median over samples of seconds per mask, as the first sample is slowed by start-up."""
    seconds = torch.tensor([r.seconds / r.regions for r in records]).median()
    return sum(r.forwards for r in records) / sum(r.regions for r in records), float(seconds)
