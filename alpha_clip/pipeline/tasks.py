"""Do a run's work shard by shard, and tell which shards are done.

A shard is a file, or the folder of a class. The output folder holds for a shard called NAME::

    NAME.tar or .parquet    what was made of the shard
    rejects/NAME.jsonl      its bad input, a line each
    hashes/NAME.bin         marks of the pictures that were written, 200 bytes each, beside a tar
    manifests/NAME.json     counts, sizes and hashes of these files, and what made them

and `rejects.jsonl`, `report.json` and `settings.json` for all shards. The manifest is written last; without it a shard
is not done.

Each file has a temporary name until it is whole. Names and bytes follow from the shard and the settings alone, so that
a shard that is done twice by accident is in the output once.
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
SETTINGS, REPORT, ALL_REJECTS = "settings.json", "report.json", "rejects.jsonl"  # for all shards
PACKAGES = ("alpha-clip", "torch", "pillow", "numpy")
EXTRAS = (
    "transformers",
    "open_clip_torch",
    "webdataset",
    "pyarrow",
    "ray",
)  # optional packages whose versions are recorded

REMEDY = "choose another folder, or delete this one"

_ELSE = "choose another output folder"
_CHANGED = "changed while it was read"
_VERSION = 3  # of the form of manifests, and of the files they describe


class Task(Protocol):
    """A work with its models loaded: called with a shard, it writes the file that is made of it."""

    suffix: str  # of the written file
    models: Mapping[str, str]  # role of each model -> its fingerprint

    def __call__(self, shard: Path, file: BinaryIO, ledger: Ledger) -> None: ...


class Work(Protocol):
    """The settings of a run, small enough to be sent to other processes, where `prepare` makes them a task.

    `settings` returns all that the files depend on. Names that begin with `fingerprints.WEIGHTS` hold fingerprints of
    models' files, or None where these are not known yet.
    """

    def settings(self) -> dict[str, Any]: ...

    def prepare(self) -> Task: ...


def names_of(work: Work) -> list[str]:
    """The model names in a work's settings."""
    named = (getattr(work, role, None) for role in ("segmenter", "captioner", "model"))
    return [name for name in named if isinstance(name, str)]


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of settings that differ. Weights that are unknown on either side are not compared."""
    before, now = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    other = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    unknown = {name for name in other if name.startswith(WEIGHTS) and None in (before.get(name), now.get(name))}
    return sorted(set(other) - unknown)


def prepared(work: Work, folder: Path) -> Task:
    """Load the work's models, and check that they are those that made the shards in the folder.

    Raises:
        ValueError: other models made them.
        OSError: a file of weights is cut off.
        Other errors: as the work's `prepare`.
    """
    try:
        task = work.prepare()
    except SafetensorError as error:  # transformers and open_clip let it through, and it does not name the file
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
    """Refuse an output folder that holds a shard, which might be overwritten, or lies in one, which would change.

    Raises:
        ValueError: the folder holds a shard, or lies in one.
        NotADirectoryError: the path is a file, or leads through one.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file, expected a folder, or a name for a new one")
    stats = {shard: shard.stat() for shard in shards if shard.exists()}
    inputs = {(stat.st_ino, stat.st_dev) for stat in stats.values()}  # the same file may have other names and links
    numbers = {number for number, _ in inputs}
    for entry in [*os.scandir(folder)] if folder.exists() else ():
        if entry.inode() in numbers and (entry.inode(), os.stat(entry.path).st_dev) in inputs:
            raise ValueError(f"{entry.path} is to be read, and might be written over: {_ELSE}")
    places = {folder.resolve(), *folder.resolve().parents}
    for shard in shards:
        if shard.is_dir() and shard.resolve() in places:
            raise ValueError(f"{folder} lies in {shard}, which is to be read: {_ELSE}")


def check_ours(work: Work, shards: Sequence[Path], folder: Path) -> None:
    """Refuse an output folder with files that no run wrote, and that this run would overwrite.

    Raises:
        ValueError: the folder holds such a file.
    """
    expected = {SETTINGS: {"command"} & work.settings().keys(), REPORT: {"shards", "pictures", "regions"}}
    for path in filter(Path.exists, map(folder.joinpath, expected)):
        if not expected[path.name] <= _fields(path):
            raise ValueError(f"{path} is not of a run of this pipeline, and would be written over: {_ELSE}")
    if not (folder / SETTINGS).exists():  # the first file that a run writes
        made = (f"{name_of(shard)}{suffix}" for shard in shards for suffix in (".tar", ".parquet"))
        others = [*map(folder.joinpath, (ALL_REJECTS, *made)), *_manifests(folder)]
        if there := next(filter(Path.exists, others), None):
            raise ValueError(f"{folder} holds {there.name}, and no {SETTINGS} of a run that wrote it: {_ELSE}")


def _fields(path: Path) -> set[str]:
    """The names in the record of a JSON file; empty if it holds anything else."""
    try:
        return set(parsed(path.read_bytes()))
    except ValueError:
        return set()


def make(shard: Path, folder: Path, task: Task) -> None:
    """Process one shard, and write its manifest last."""
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
    """The installed versions, used or not, so that the plain loop, processes and Ray leave the same manifests."""
    found = {name: version(name) for name in PACKAGES}
    for name in EXTRAS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def name_of(shard: Path) -> str:
    """The name of a shard's output files: a file's name without its suffix, a folder's whole, which may have dots."""
    return shard.name if shard.is_dir() else shard.stem


def _input(shard: Path) -> dict[str, Any]:
    if not shard.is_dir():
        return {"name": shard.name, "bytes": shard.stat().st_size}
    sizes = [path.stat().st_size if path.exists() else 0 for path in files_in(shard)]  # a link may lead nowhere
    return {"name": shard.name, "files": len(sizes), "bytes": sum(sizes)}


def _digest(shard: Path) -> str:
    return fingerprints.of_files(files_in(shard), shard) if shard.is_dir() else sha256(shard)


def _changed(shard: Path) -> float:
    """The time at which a shard was last changed, in seconds."""
    paths = [path for path in files_in(shard) if path.exists()] if shard.is_dir() else []
    return max(path.stat().st_mtime for path in [shard, *paths])


def _stamp(shard: Path) -> tuple[dict[str, Any], float]:
    return _input(shard), _changed(shard)


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def is_done(shard: Path, folder: Path) -> bool:
    """Whether the shard's files are complete, and the shard has not changed since they were made.

    A shard that is younger than its manifest is hashed, because tars of different contents often have the same size.
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
    """Whether the shard has a manifest, and its files have the sizes given there."""
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
    """Read a manifest. None: it is missing, damaged or of another version, and its shard is not done."""
    try:
        found = parsed(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("version") == _VERSION else None


def remove_parts(folder: Path) -> None:
    """Delete the unfinished files of killed runs. No other run may be at work in the folder."""
    for place in (folder, folder / MANIFESTS, folder / REJECTS, folder / HASHES):
        for part in place.glob(".*.part"):
            part.unlink(missing_ok=True)


def summarise(folder: Path) -> Ledger:
    """Write `report.json` and `rejects.jsonl` for all shards in the folder, and return the sums of their counts.

    Shards whose files are not as their manifest says are left out.
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
            if manifest["models"] != models:  # workers that began together, while files changed
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
