"""Write a run as results.md and as results.json, which is all that a comparison with another run needs."""

from __future__ import annotations

import datetime
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import atomic
from .records import Answer, Record
from .run import Pair, Run, cost
from .samples import Column
from .tables import Table

VERSION = 1  # of the layout of results.json
PACKAGES = ("alpha-clip", "torch", "torchvision", "transformers", "open_clip_torch", "pillow", "numpy")


def write(run: Run, folder: Path, command: Sequence[str]) -> None:
    """Write results.json and results.md into `folder`."""
    text = json.dumps(contents(run, command), separators=(",", ":"), default=_plain)
    atomic.write_text(folder / "results.json", text + "\n")
    atomic.write_text(folder / "results.md", markdown(run, command))


def contents(run: Run, command: Sequence[str]) -> dict[str, Any]:
    """A run as JSON can hold it.

    To save space only the ranks of the answers are kept, by way and sample; ``samples`` holds the questions, and the
    names that a model gave stay in records.jsonl.
    """
    samples: dict[str, list[tuple[str, str]]] = {}
    for record in run.records:
        samples.setdefault(record.key, [(answer.right, answer.group) for answer in record.answers])
    return {
        "version": VERSION,
        "task": run.task.name,
        "columns": [asdict(column) for column in run.task.columns],
        "identity": run.identity,
        "made": made(command),
        "tables": [asdict(table) for table in tables(run)],
        "notes": list(run.task.notes),
        "findings": [asdict(finding) for finding in run.findings],
        "unusable": run.unusable,
        "samples": samples,  # the right answer and the group of each question
        "ways": [_way(run, pair, list(samples)) for pair in run.ways()],
    }


def _way(run: Run, pair: Pair, keys: Sequence[str]) -> dict[str, Any]:
    """The answers of one model, looking in one way, in the order of `keys`."""
    records = run.of(*pair)
    forwards, seconds = cost(records)
    ranks = {record.key: [answer.rank for answer in record.answers] for record in records}
    cells = {"model": pair[0], "way": pair[1], "forwards": forwards, "seconds": seconds}
    return cells | {"ranks": [ranks[key] for key in keys]}


def made(command: Sequence[str]) -> Mapping[str, Any]:
    """Which command made it, when, and with which versions."""
    return {
        "command": shlex.join(command),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def tables(run: Run) -> list[Table]:
    """The tables of a run; none if it only probed the models."""
    return [run.table(), run.differences()] if run.records else []


def asked(run: Run) -> str:
    """How many questions were asked about how many samples, in words."""
    counts = {record.key: len(record.answers) for record in run.records}
    return f"{sum(counts.values()):,} questions about {len(counts):,} samples"


def markdown(run: Run, command: Sequence[str]) -> str:
    parts = [table.markdown() for table in tables(run)] + [finding.markdown() for finding in run.findings]
    parts += run.task.notes
    if run.records:
        parts.insert(0, f"{asked(run)}.")
    if run.unusable:
        parts.append(f"{len(run.unusable)} samples could not be used; the first: {next(iter(run.unusable.values()))}")
    return "\n\n".join([f"# {run.task.name}", f"`{shlex.join(command)}`", *parts]) + "\n"


@dataclass(frozen=True)
class Results:
    """The part of results.json that a comparison with another run needs."""

    path: Path
    task: str
    columns: tuple[Column, ...]
    identity: Mapping[str, Any]
    made: Mapping[str, Any]
    ways: Mapping[Pair, Mapping[str, Record]]  # by (model, way), then by sample

    @property
    def keys(self) -> list[str]:
        """The samples, which are the same for every way."""
        return list(next(iter(self.ways.values())))


def read(path: Path) -> Results:
    """Read a results.json that `write` wrote.

    Raises:
        OSError: there is no such file.
        ValueError: `write` did not write it, or another version did; or it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, expected the results.json of an evaluation")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}), expected a results.json of an evaluation") from error
    if not isinstance(content, dict) or "version" not in content or "ways" not in content:
        raise ValueError(f"{path} is JSON, but not the results.json of an evaluation: pass the file that one wrote")
    if content["version"] != VERSION:
        raise ValueError(
            f"{path} has version {content['version']!r} of the layout, expected {VERSION}: run its command again, "
            "which goes on from records.jsonl and asks nothing twice"
        )
    try:
        columns = tuple(Column(**c | {"groups": tuple(c["groups"])}) for c in content["columns"])
        ways = {(way["model"], way["way"]): _records(content["samples"], way) for way in content["ways"]}
        results = Results(path, content["task"], columns, content["identity"], content["made"], ways)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): run its command again") from error
    if not ways:
        raise ValueError(f"{path} holds findings about models, but no answers that could be compared")
    return results


def _records(samples: Mapping[str, Any], way: Mapping[str, Any]) -> dict[str, Record]:
    records = {}
    for (key, questions), ranks in zip(samples.items(), way["ranks"], strict=True):
        pairs = zip(questions, ranks, strict=True)
        answers = tuple(Answer(right, rank, region=0, group=group) for (right, group), rank in pairs)
        records[key] = Record(key, way["model"], way["way"], answers, 0, way["forwards"], way["seconds"])
    return records


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # an optional package
        return ""


def _plain(value: Any) -> Any:
    """Convert NumPy's numbers and arrays, which `json` cannot write."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")
