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
from .folders import files_in
from .ledger import Ledger

MANIFESTS, REJECTS = "manifests", "rejects"
PACKAGES = ("alpha-clip", "torch", "pillow", "numpy")

_VERSION = 1  # of the manifests


class Task(Protocol):
    """Makes one file of one shard, a file or a folder, and has loaded what it needs for it."""

    suffix: str  # of the file
    models: Mapping[str, str]  # what the file depends on besides the shard and the settings

    def __call__(self, shard: Path, file: BinaryIO, ledger: Ledger) -> None: ...


class Work(Protocol):
    """Settings, small enough to be sent to other processes, that become a task there."""

    def settings(self) -> dict[str, Any]: ...

    def prepare(self) -> Task: ...


def make(shard: Path, folder: Path, task: Task) -> None:
    """Do one shard, and write its manifest last."""
    ledger = Ledger()
    name = name_of(shard)
    made, rejects = folder / f"{name}{task.suffix}", folder / REJECTS / f"{name}.jsonl"
    with _whole(made) as file:
        task(shard, file, ledger)
    with _whole(rejects) as file:
        file.writelines(json.dumps(line).encode() + b"\n" for line in ledger.lines())
    manifest = {
        "version": _VERSION,
        "input": _input(shard),
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


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def is_done(shard: Path, folder: Path) -> bool:
    """Whether the manifest is there and speaks of this shard, and the files have the sizes that it says."""
    found = _manifest(shard, folder)
    if found is None or found["version"] != _VERSION or found["input"] != _input(shard):
        return False
    paths = {folder / name: described["bytes"] for name, described in found["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _manifest(shard: Path, folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFESTS / f"{name_of(shard)}.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found


def remove_parts(folder: Path) -> None:
    """Delete what killed runs left unfinished; nothing else may be at work in the folder."""
    for place in (folder, folder / MANIFESTS, folder / REJECTS):
        for part in place.glob(".*.part"):
            part.unlink(missing_ok=True)


def summarise(shards: Iterable[Path], folder: Path) -> Ledger:
    """Write report.json and rejects.jsonl from those of the shards, which are all done. Return the sums."""
    total, models, number = Ledger(), set[str](), 0
    with _whole(folder / "rejects.jsonl") as file:
        for shard in shards:
            manifest = _manifest(shard, folder)
            assert manifest is not None
            total.add(manifest)
            models.update(f"{role}: {model}" for role, model in manifest["models"].items())
            file.write((folder / REJECTS / f"{name_of(shard)}.jsonl").read_bytes())
            number += 1
    report = {"shards": number, **total.summary(), "models": sorted(models)}
    write_whole(folder / "report.json", json.dumps(report, indent=1) + "\n")
    return total
