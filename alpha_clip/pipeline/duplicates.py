"""Duplicate pictures in all shards of a run: counted, and left out by a second run."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
from numpy.typing import NDArray

from ..training.records import parsed
from ..training.shards import Entry, scanned
from . import fingerprints
from .alike import BYTES, Alike, MarkSet, keys, tables
from .ledger import Ledger

HASHES = "hashes"  # folder with a file for each shard: the marks of the pictures that were written (`alike`)

_BLOCK = 4096  # how many marks are read at a time


def marks_in(file: Path) -> NDArray[np.uint8]:
    """The marks (N, 200) of a shard's N pictures."""
    return np.fromfile(file, np.uint8).reshape(-1, BYTES)


def _blocks(files: Iterable[Path]) -> Iterator[NDArray[np.uint8]]:
    for path in files:
        with path.open("rb") as file:
            while data := file.read(_BLOCK * BYTES):
                yield np.frombuffer(data, np.uint8).reshape(-1, BYTES)


def repeated(files: Sequence[Path], by: Alike = "both") -> list[NDArray[np.bool_]]:
    """Tell for each file of N marks which of its pictures (N,) are like an earlier one in it or in a file before it.

    A picture that is left out is not compared with later ones. Memory: some 30 bytes for each picture of all files
    while keys are sorted, then a `MarkSet` of those that share a key with another.
    """
    ends = np.cumsum([file.stat().st_size // BYTES for file in files])
    shared = _with_shared_keys(files, by, ends[-1] if files else 0)
    again, seen, start = np.zeros(len(shared), bool), MarkSet(by), 0
    for marks in _blocks(files):
        for number in np.flatnonzero(shared[start : start + len(marks)]).tolist():
            mark = marks[number].tobytes()
            if seen.holds(mark):
                again[start + number] = True
            else:
                seen.add(mark)
        start += len(marks)
    return np.split(again, ends[:-1])


def _with_shared_keys(files: Sequence[Path], by: Alike, count: int) -> NDArray[np.bool_]:
    """Tell which of all pictures (count,) share a key with another one."""
    shared = np.zeros(count, bool)
    for table in tables(by):
        found, start = np.empty(count, np.uint64), 0
        for marks in _blocks(files):
            found[start : start + len(marks)] = keys(marks, by, table)[:, 0]
            start += len(marks)
        order = np.argsort(found)
        found = found[order]
        same = found[1:] == found[:-1]
        shared[order[1:][same]] = True
        shared[order[:-1][same]] = True
    return shared


@dataclass(frozen=True)
class Deduplicate:
    """Copy the shards of a run without the pictures that are like an earlier one, in the order of the shards' names.

    Raises:
        ValueError: `by` is none of the three.
    """

    folder: Path  # output folder of annotate-grounding or annotate-classification
    by: Alike = "both"

    def __post_init__(self) -> None:
        if self.by not in get_args(Alike):
            raise ValueError(f"by is {self.by!r}, expected one of {', '.join(get_args(Alike))}")

    def shards(self) -> list[Path]:
        """The shards that the run wrote.

        Raises:
            FileNotFoundError: there is no report.
            ValueError: the run has not ended, or its files have changed.
        """
        if not (self.folder / "report.json").is_file():
            raise FileNotFoundError(f"{self.folder} holds no report.json: run annotate-... to its end first")
        expected = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))["shards"]
        manifests = self._manifests()
        sizes = {name: file["bytes"] for found in manifests for name, file in found["files"].items()}
        wrong = [name for name, size in sizes.items() if not _has(self.folder / name, size)]
        hashes = sorted(name for name in sizes if name.startswith(f"{HASHES}/"))
        if wrong or not len(hashes) == len(manifests) == expected:
            found = f"{wrong[0]} is not as it was" if wrong else f"{len(hashes)} hashes, {len(manifests)} manifests"
            remedy = "run annotate-... over all its shards again"
            raise ValueError(f"{self.folder} holds a report of {expected} shards, and {found}: {remedy}")
        return [self.folder / f"{Path(name).stem}.tar" for name in hashes]

    def _manifests(self) -> list[dict[str, Any]]:
        """The manifests that are not damaged, in the order of their names."""
        found = []
        for path in sorted((self.folder / "manifests").glob("[!.]*.json")):
            with suppress(ValueError):
                found.append(parsed(path.read_bytes()))
        return [manifest for manifest in found if "files" in manifest]

    def settings(self) -> dict[str, Any]:
        """All that the output depends on."""
        pictures = fingerprints.of_files((self.folder / HASHES).iterdir(), self.folder)
        return {"command": "deduplicate", "by": self.by, "pictures": pictures}

    def prepare(self) -> Deduplication:
        """Find the pictures that are like an earlier one.

        Raises:
            FileNotFoundError, ValueError: as `shards`.
        """
        names = [shard.stem for shard in self.shards()]
        files = [self.folder / HASHES / f"{name}.bin" for name in names]
        models = self._manifests()[0]["models"] if names else {}
        return Deduplication(dict(zip(names, repeated(files, self.by), strict=True)), models)


def _has(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


@dataclass
class Deduplication:
    """Copies one shard without its duplicates, which are known for all shards."""

    again: Mapping[str, NDArray[np.bool_]]  # shard name -> which of its pictures (N,) are left out
    models: Mapping[str, str]
    suffix: str = field(default=".tar", init=False)

    def __call__(self, shard: Path, file: BinaryIO, ledger: Ledger) -> None:
        again, entries = self.again[shard.stem], scanned(shard)
        if len(entries) != len(again) or any(entry.wrong for entry in entries):
            raise ValueError(f"{shard} does not hold the {len(again)} pictures that it had: run annotate-... again")
        kept = [entry for entry, left_out in zip(entries, again, strict=True) if not left_out]
        self._count(shard, entries, kept, ledger)
        ledger.hashes = bytearray(marks_in(shard.parent / HASHES / f"{shard.stem}.bin")[~again].tobytes())
        starts = {start for entry in kept for start in (entry.image_at, entry.json_at)}
        with tarfile.open(shard, "r:") as source, tarfile.open(fileobj=file, mode="w") as target:
            for member in source:
                if member.offset_data in starts:
                    target.addfile(member, source.extractfile(member))

    def _count(self, shard: Path, entries: Sequence[Entry], kept: Sequence[Entry], ledger: Ledger) -> None:
        ledger.pictures.update(read=len(entries), written=len(kept))
        written = {entry.key for entry in kept}
        with shard.open("rb") as file:
            for entry in entries:
                file.seek(entry.json_at)
                regions = len(json.loads(file.read(entry.json_size))["regions"])
                ledger.regions["read"] += regions
                if entry.key in written:
                    ledger.regions["written"] += regions
                else:
                    ledger.drop("duplicate", regions)
