"""Work shard by shard: a file, what was rejected, and then a manifest, without which the shard counts as not done.

A shard is a file, or the folder of a class. In the output folder, for one of the name NAME::

    NAME.tar or .parquet    what was made of it
    rejects/NAME.jsonl      bad input in it, a line each
    hashes/NAME.bin         of its pictures, 200 bytes each, if it is a tar
    manifests/NAME.json     counts, sizes and hashes of these files, what made them
    rejects.jsonl, report.json, settings.json    of all shards

Each file has a temporary name until it is whole. Names and bytes follow from the shard and the settings alone, so that
a shard that is done twice, by whatever accident, is there once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from uuid import uuid4

from ..evaluation.records import write_whole
from ..hashes import sha256
from . import duplicates, fingerprints
from .duplicates import HASHES
from .folders import files_in
from .ledger import Ledger

MANIFESTS, REJECTS = "manifests", "rejects"
PACKAGES = ("alpha-clip", "torch", "pillow", "numpy")

REMEDY = "choose another folder, or delete this one"

_CHANGED = "changed while it was read"
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
    ledger, before = Ledger(), _stamp(shard)
    name = name_of(shard)
    made, rejects = folder / f"{name}{task.suffix}", folder / REJECTS / f"{name}.jsonl"
    with _whole(made) as file:
        task(shard, file, ledger)
    with _whole(rejects) as file:
        file.writelines(json.dumps({"shard": shard.name, **line}).encode() + b"\n" for line in ledger.lines())
    files = [made, rejects]
    if ledger.hashes is not None:
        files.append(folder / HASHES / f"{name}.bin")
        files[-1].parent.mkdir(exist_ok=True)
        with _whole(files[-1]) as file:
            file.write(ledger.hashes)
    manifest = {
        "version": _VERSION,
        "input": before[0] | {"sha256": _digest(shard) if _stamp(shard) == before else _CHANGED},
        "files": {path.relative_to(folder).as_posix(): _described(path) for path in files},
        **ledger.summary(),
        "models": dict(task.models),
        "versions": {name: version(name) for name in PACKAGES},
    }
    write_whole(_manifest(shard, folder), json.dumps(manifest, indent=1) + "\n")


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


def _stamp(shard: Path) -> tuple[dict[str, Any], float]:
    return _input(shard), _changed(shard)


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def is_done(shard: Path, folder: Path) -> bool:
    """Whether `is_there` what was made of the shard, and the shard is the one that it was made of.

    A shard that is younger than its manifest is read, for tars of other contents are often of the same size.
    """
    if not is_there(shard, folder):
        return False
    manifest = _manifest(shard, folder)
    found, same = _read(manifest)["input"], _input(shard)
    if {name: found.get(name) for name in same} != same or found["sha256"] == _CHANGED:
        return False
    return _changed(shard) <= manifest.stat().st_mtime or found["sha256"] == _digest(shard)


def is_there(shard: Path, folder: Path) -> bool:
    """Whether there is a manifest, and the files have the sizes that it says."""
    if not (manifest := _manifest(shard, folder)).is_file() or (found := _read(manifest))["version"] != _VERSION:
        return False
    paths = {folder / name: described["bytes"] for name, described in found["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _manifest(shard: Path, folder: Path) -> Path:
    return folder / MANIFESTS / f"{name_of(shard)}.json"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def remove_parts(folder: Path) -> None:
    """Delete what killed runs left unfinished; nothing else may be at work in the folder."""
    for place in (folder, folder / MANIFESTS, folder / REJECTS, folder / HASHES):
        for part in place.glob(".*.part"):
            part.unlink(missing_ok=True)


def summarise(shards: Sequence[Path], folder: Path) -> Ledger:
    """Write report.json and rejects.jsonl from those of the shards, which are all done. Return the sums."""
    total, models, number = Ledger(), dict[str, str](), 0
    with _whole(folder / "rejects.jsonl") as file:
        for shard in shards:
            manifest = _read(_manifest(shard, folder))
            total.add(manifest)
            models = models or manifest["models"]
            if manifest["models"] != models:  # of workers that began at the same time, while files changed
                raise RuntimeError(
                    f"{folder} holds shards of different models, {models}, {manifest['models']}: {REMEDY}"
                )
            file.write((folder / REJECTS / f"{name_of(shard)}.jsonl").read_bytes())
            number += 1
    said = sorted(f"{role}: {model}" for role, model in models.items())
    report = {"shards": number, **total.summary(), "models": said}
    hashes = sorted(folder / HASHES / f"{name_of(shard)}.bin" for shard in shards)
    if all(path.is_file() for path in hashes):
        total.duplicates = sum(int(again.sum()) for again in duplicates.repeated(hashes))
        report["duplicates"] = total.duplicates
    write_whole(folder / "report.json", json.dumps(report, indent=1) + "\n")
    return total
