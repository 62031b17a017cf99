"""Work shard by shard: a file, what was rejected, and then a manifest, without which the shard counts as not done.

A shard is a file, or the folder of a class. In the output folder, for one of the name NAME::

    NAME.tar or .parquet    what was made of it
    rejects/NAME.jsonl      bad input in it, a line each
    manifests/NAME.json     counts, sizes and hashes of both files, what made them
    rejects.jsonl, report.json, settings.json    of all shards

Each file has a temporary name until it is whole. Names and bytes follow from the shard and the settings alone, so that
a shard that is done twice, by whatever accident, is there once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from uuid import uuid4

from ..evaluation.records import write_whole
from ..hashes import sha256
from . import fingerprints
from .folders import files_in
from .ledger import Ledger

MANIFESTS, REJECTS = "manifests", "rejects"
PACKAGES = ("alpha-clip", "torch", "pillow", "numpy")

REMEDY = "choose another folder, or delete this one"

_VERSION = 2  # of the manifests


class Task(Protocol):
    """Makes one file of one shard, a file or a folder, and has loaded what it needs for it."""

    suffix: str  # of the file
    models: Mapping[str, str]  # what the file depends on besides the shard and the settings

    def __call__(self, shard: Path, file: BinaryIO, ledger: Ledger) -> None: ...


class Work(Protocol):
    """Settings, small enough to be sent to other processes, that become a task there.

    What `settings` returns under names that begin with `fingerprints.WEIGHTS` are the fingerprints of models' files;
    None: not known yet.
    """

    def settings(self) -> dict[str, Any]: ...

    def prepare(self) -> Task: ...


def prepared(work: Work, folder: Path) -> Task:
    """The work's task, with its models loaded, which are those that made the shards in the folder.

    Raises:
        ValueError: they are others. Others: as the work's `prepare`.
    """
    task = work.prepare()
    manifests = map(_read, sorted((folder / MANIFESTS).glob("[!.]*.json")))
    before = next((found["models"] for found in manifests if found["version"] == _VERSION), task.models)
    if other := [role for role, model in task.models.items() if before.get(role) != model]:
        found = "; ".join(f"{role}: {before.get(role)} there, {task.models[role]} now" for role in other)
        what = "that is, other weights under the same name, or the same in another precision, as on another device"
        raise ValueError(f"{folder} holds a run with other models ({found}), {what}: {REMEDY}")
    return task


def make(shard: Path, folder: Path, task: Task) -> None:
    """Do one shard, and write its manifest last."""
    ledger, read = Ledger(), _input(shard)
    name = name_of(shard)
    made, rejects = folder / f"{name}{task.suffix}", folder / REJECTS / f"{name}.jsonl"
    with _whole(made) as file:
        task(shard, file, ledger)
    with _whole(rejects) as file:
        file.writelines(json.dumps(line).encode() + b"\n" for line in ledger.lines())
    manifest = {
        "version": _VERSION,
        "input": read | {"sha256": _digest(shard)},
        "files": {path.relative_to(folder).as_posix(): _described(path) for path in (made, rejects)},
        **ledger.summary(),
        "models": dict(task.models),
        "versions": {name: version(name) for name in PACKAGES},
    }
    write_whole(folder / MANIFESTS / f"{name}.json", json.dumps(manifest, indent=1) + "\n")


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    part = path.with_name(f".{path.name}.{os.getpid()}.{uuid4().hex[:8]}.part")  # machines may share a process number
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def name_of(shard: Path) -> str:
    """What a shard's files are called: a file's name without its suffix, a folder's as it is, for it may have dots."""
    return shard.name if shard.is_dir() else shard.stem


def _input(shard: Path) -> dict[str, Any]:
    if not shard.is_dir():
        return {"name": shard.name, "bytes": shard.stat().st_size}
    sizes = [path.stat().st_size if path.exists() else 0 for path in files_in(shard)]  # a link may lead nowhere
    return {"name": shard.name, "files": len(sizes), "bytes": sum(sizes)}


def _digest(shard: Path) -> str:
    return fingerprints.of_files(files_in(shard), shard) if shard.is_dir() else sha256(shard)


def _changed(shard: Path) -> float:
    """When a shard was last changed, in seconds."""
    paths = [path for path in files_in(shard) if path.exists()] if shard.is_dir() else []
    return max(path.stat().st_mtime for path in [shard, *paths])


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def is_done(shard: Path, folder: Path) -> bool:
    """Whether the manifest is there and speaks of this shard, and the files have the sizes that it says.

    A shard that is younger than its manifest is read, for tars of other contents are often of the same size.
    """
    manifest = folder / MANIFESTS / f"{name_of(shard)}.json"
    found = _read(manifest) if manifest.is_file() else None
    if found is None or found["version"] != _VERSION or not found["input"].items() >= _input(shard).items():
        return False
    if _changed(shard) > manifest.stat().st_mtime and found["input"]["sha256"] != _digest(shard):
        return False
    paths = {folder / name: described["bytes"] for name, described in found["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def remove_parts(folder: Path) -> None:
    """Delete what killed runs left unfinished; nothing else may be at work in the folder."""
    for place in (folder, folder / MANIFESTS, folder / REJECTS):
        for part in place.glob(".*.part"):
            part.unlink(missing_ok=True)


def summarise(shards: Iterable[Path], folder: Path) -> Ledger:
    """Write report.json and rejects.jsonl from those of the shards, which are all done. Return the sums."""
    total, models, number = Ledger(), dict[str, str](), 0
    with _whole(folder / "rejects.jsonl") as file:
        for shard in shards:
            manifest = _read(folder / MANIFESTS / f"{name_of(shard)}.json")
            total.add(manifest)
            models = models or manifest["models"]
            if manifest["models"] != models:  # of workers that began at the same time, while files changed
                raise RuntimeError(
                    f"{folder} holds shards of different models, {models}, {manifest['models']}: {REMEDY}"
                )
            file.write((folder / REJECTS / f"{name_of(shard)}.jsonl").read_bytes())
            number += 1
    report = {
        "shards": number,
        **total.summary(),
        "models": sorted(f"{role}: {model}" for role, model in models.items()),
    }
    write_whole(folder / "report.json", json.dumps(report, indent=1) + "\n")
    return total
