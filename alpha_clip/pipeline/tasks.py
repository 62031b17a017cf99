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
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from safetensors import SafetensorError

from .. import atomic
from ..atomic import replacing
from ..hashes import sha256
from ..training.records import parsed
from . import duplicates, fingerprints
from .duplicates import HASHES
from .fingerprints import WEIGHTS
from .folders import files_in
from .ledger import Ledger

MANIFESTS, REJECTS = "manifests", "rejects"
SETTINGS, REPORT, ALL_REJECTS = "settings.json", "report.json", "rejects.jsonl"  # of all shards
PACKAGES = ("alpha-clip", "torch", "pillow", "numpy")
EXTRAS = ("transformers", "open_clip_torch", "webdataset", "pyarrow", "ray")  # whose versions count where installed

REMEDY = "choose another folder, or delete this one"

_ELSE = "choose another output folder"
_CHANGED = "changed while it was read"
_VERSION = 3  # of the manifests, and of the files that they are of


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


def names_of(work: Work) -> list[str]:
    """Of its models."""
    named = (getattr(work, role, None) for role in ("segmenter", "captioner", "model"))
    return [name for name in named if isinstance(name, str)]


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of settings that are not the same. Weights that are not known, here or there, are not compared."""
    before, now = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    other = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    unknown = {name for name in other if name.startswith(WEIGHTS) and None in (before.get(name), now.get(name))}
    return sorted(set(other) - unknown)


def prepared(work: Work, folder: Path) -> Task:
    """The work's task, with its models loaded, which are those that made the shards in the folder.

    Raises:
        ValueError: they are others. OSError: a file of weights is cut off. Others: as the work's `prepare`.
    """
    try:
        task = work.prepare()
    except SafetensorError as error:  # which transformers and open_clip let through, and does not say of which file
        where = fingerprints.cut_off(names_of(work)) or " or ".join(names_of(work))
        raise OSError(f"{where} is not a whole safetensors file ({error}): copy or fetch it again") from error
    manifests = filter(None, map(_read, _manifests(folder)))
    before = next((found["models"] for found in manifests), task.models)
    if other := [role for role, model in task.models.items() if before.get(role) != model]:
        found = "; ".join(f"{role}: {before.get(role)} there, {task.models[role]} now" for role in other)
        what = "that is, other weights under the same name, or the same in another precision, as on another device"
        raise ValueError(f"{folder} holds a run with other models ({found}), {what}: {REMEDY}")
    return task


def check_place(shards: Sequence[Path], folder: Path) -> None:
    """Refuse a folder that holds a shard, which might be written over, or lies in one, which would change.

    Raises:
        ValueError: it is such a folder. NotADirectoryError: it is no folder, nor can it become one.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file, expected a folder, or a name for a new one")
    stats = {shard: shard.stat() for shard in shards if shard.exists()}
    inputs = {(stat.st_ino, stat.st_dev) for stat in stats.values()}  # whatever names and links lead there
    numbers = {number for number, _ in inputs}
    for entry in [*os.scandir(folder)] if folder.exists() else ():
        if entry.inode() in numbers and (entry.inode(), os.stat(entry.path).st_dev) in inputs:
            raise ValueError(f"{entry.path} is to be read, and might be written over: {_ELSE}")
    places = {folder.resolve(), *folder.resolve().parents}
    for shard in shards:
        if shard.is_dir() and shard.resolve() in places:
            raise ValueError(f"{folder} lies in {shard}, which is to be read: {_ELSE}")


def check_ours(work: Work, shards: Sequence[Path], folder: Path) -> None:
    """Refuse a folder with files that no run wrote, and which one would write over.

    Raises:
        ValueError: it is such a folder.
    """
    expected = {SETTINGS: {"command"} & work.settings().keys(), REPORT: {"shards", "pictures", "regions"}}
    for path in filter(Path.exists, map(folder.joinpath, expected)):
        if not expected[path.name] <= _fields(path):
            raise ValueError(f"{path} is not of a run of this pipeline, and would be written over: {_ELSE}")
    if not (folder / SETTINGS).exists():  # the first that a run writes
        made = (f"{name_of(shard)}{suffix}" for shard in shards for suffix in (".tar", ".parquet"))
        others = [*map(folder.joinpath, (ALL_REJECTS, *made)), *_manifests(folder)]
        if there := next(filter(Path.exists, others), None):
            raise ValueError(f"{folder} holds {there.name}, and no {SETTINGS} of a run that wrote it: {_ELSE}")


def _fields(path: Path) -> set[str]:
    """Of the record in a JSON file; none of anything else."""
    try:
        return set(parsed(path.read_bytes()))
    except ValueError:
        return set()


def make(shard: Path, folder: Path, task: Task) -> None:
    """Do one shard, and write its manifest last."""
    ledger, before = Ledger(), _stamp(shard)
    name = name_of(shard)
    made, rejects = folder / f"{name}{task.suffix}", folder / REJECTS / f"{name}.jsonl"
    with replacing(made) as part, part.open("wb") as file:
        task(shard, file, ledger)
    with replacing(rejects) as part, part.open("wb") as file:
        file.writelines(json.dumps({"shard": shard.name, **line}).encode() + b"\n" for line in ledger.lines())
    files = [made, rejects]
    if ledger.hashes is not None:
        files.append(folder / HASHES / f"{name}.bin")
        files[-1].parent.mkdir(exist_ok=True)
        with replacing(files[-1]) as part:
            part.write_bytes(ledger.hashes)
    manifest = {
        "version": _VERSION,
        "input": before[0] | {"sha256": _digest(shard) if _stamp(shard) == before else _CHANGED},
        "files": {path.relative_to(folder).as_posix(): _described(path) for path in files},
        **ledger.summary(),
        "models": dict(task.models),
        "versions": _versions(),
    }
    atomic.write_text(_manifest(shard, folder), json.dumps(manifest, indent=1) + "\n")


def _versions() -> dict[str, str]:
    """What is installed. It does not depend on how the run is done, so that all ways leave the same manifests."""
    found = {name: version(name) for name in PACKAGES}
    for name in EXTRAS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
    manifest = _manifest(shard, folder)
    record = _read(manifest)
    if record is None or not _is_whole(record, folder):
        return False
    found, same = record["input"], _input(shard)
    if {name: found.get(name) for name in same} != same or found["sha256"] == _CHANGED:
        return False
    return _changed(shard) <= manifest.stat().st_mtime or found["sha256"] == _digest(shard)


def is_there(shard: Path, folder: Path) -> bool:
    """Whether there is a manifest, and the files have the sizes that it says."""
    manifest = _read(_manifest(shard, folder))
    return manifest is not None and _is_whole(manifest, folder)


def _is_whole(manifest: Mapping[str, Any], folder: Path) -> bool:
    paths = {folder / name: described["bytes"] for name, described in manifest["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _manifest(shard: Path, folder: Path) -> Path:
    return folder / MANIFESTS / f"{name_of(shard)}.json"


def _manifests(folder: Path) -> list[Path]:
    return sorted((folder / MANIFESTS).glob("[!.]*.json"))


def _read(path: Path) -> dict[str, Any] | None:
    """A manifest; None: there is none, it is damaged, or it is of another version, so that its shard is not done."""
    try:
        found = parsed(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("version") == _VERSION else None


def remove_parts(folder: Path) -> None:
    """Delete what killed runs left unfinished; nothing else may be at work in the folder."""
    for place in (folder, folder / MANIFESTS, folder / REJECTS, folder / HASHES):
        for part in place.glob(".*.part"):
            part.unlink(missing_ok=True)


def summarise(folder: Path) -> Ledger:
    """Write report.json and rejects.jsonl of all shards in the folder, which those who read its tars find. Return sums.

    What is not as its manifest says is left out.
    """
    total, models, names, versions = Ledger(), dict[str, str](), list[str](), dict[str, set[str]]()
    with replacing(folder / ALL_REJECTS) as part, part.open("wb") as file:
        for path in _manifests(folder):
            manifest = _read(path)
            if manifest is None or not _is_whole(manifest, folder):
                continue
            total.add(manifest)
            for package, installed in manifest["versions"].items():
                versions.setdefault(package, set()).add(installed)
            models = models or manifest["models"]
            if manifest["models"] != models:  # of workers that began at the same time, while files changed
                raise RuntimeError(
                    f"{folder} holds shards of different models, {models}, {manifest['models']}: {REMEDY}"
                )
            names.append(path.stem)
            file.write((folder / REJECTS / f"{names[-1]}.jsonl").read_bytes())
    total.shards = len(names)
    named = sorted(f"{role}: {model}" for role, model in models.items())
    report = {"shards": total.shards, **total.summary(), "models": named}
    if mixed := {package: sorted(found) for package, found in sorted(versions.items()) if len(found) > 1}:
        report["mixed_versions"] = mixed
        said = ", ".join(f"{package} {' and '.join(found)}" for package, found in mixed.items())
        remedy = "where they may differ, run all into a new folder"
        warnings.warn(f"the shards in {folder} were made with different versions ({said}): {remedy}", stacklevel=3)
    hashes = [folder / HASHES / f"{name}.bin" for name in names]
    if all(path.is_file() for path in hashes):
        total.duplicates = sum(int(again.sum()) for again in duplicates.repeated(hashes))
        report["duplicates"] = total.duplicates
    atomic.write_text(folder / REPORT, json.dumps(report, indent=1) + "\n")
    return total
