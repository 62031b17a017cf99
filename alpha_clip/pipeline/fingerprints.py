"""Fingerprints of the files that a model's name stands for at the moment, without loading the model.

A fingerprint is None where there are no files to hash: a repository that is not in the Hub's cache yet, a tag of
open_clip. In any case the loaded weights are compared with those that made earlier shards (`tasks.prepared`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .. import catalogue, weights
from ..checkpoints import WEIGHT_FILES
from ..hashes import known_sha256, sha256
from ..sources import KnownFile

WEIGHTS = "weights of the "  # with the model's role behind it, the name of a setting

_SMALL = 1 << 20  # bytes: a smaller file is hashed as quickly as its stored hash is read
_MARKS = re.compile("[:@+]")  # what stands between library, model and other weights in a name
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def of_files(paths: Iterable[Path], root: Path, hashed: Callable[[Path], str] = sha256) -> str:
    """A hash, 16 hex digits, of the contents of all files and their names below `root`; missing files are left out."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        # A name may not be in UTF-8.
        digest.update(os.fsencode(f"{path.relative_to(root).as_posix()} {hashed(path)}\n"))
    return digest.hexdigest()[:16]


def _hashed(path: Path) -> str:
    """The SHA-256 of a file; for large files it is stored beside them."""
    return sha256(path) if path.stat().st_size < _SMALL else known_sha256(path)


def of_transformers(where: str) -> str | None:
    """The fingerprint of a model of transformers: a folder, or the weights and config.json of a repository on the Hub.

    Raises:
        FileNotFoundError: there is no such folder, and it is no name of a repository.
    """
    if where and Path(where).is_dir():
        return of_path(Path(where))
    if not _REPOSITORY.fullmatch(where):
        expected = "expected one that save_pretrained wrote, or a repository on the Hub, USER/NAME"
        raise FileNotFoundError(f"there is no folder {where}: {expected}")
    return _cached(where)


def of_clip(name: str) -> str | None:
    """The fingerprint of a CLIP, by a name that the evaluation takes."""
    kind, _, rest = name.partition(":")
    if not rest and kind in ("", "hf"):  # loading it gives the error
        return None
    if kind == "hf":
        return of_transformers(rest)
    if kind == "open_clip":
        file = Path(rest.partition(":")[2])
        return of_path(file) if file.is_file() else None
    base, plus, alpha = (name, "", "") if Path(name).expanduser().exists() else name.partition("+")
    known = catalogue.ALPHA.get(base, {})
    found = [_of_base(base), _of_alpha(base, alpha if plus else next(iter(known), ""))]
    return None if None in found else " ".join(filter(None, found))


def _of_base(name: str) -> str | None:
    if name in catalogue.BASES:
        entry = catalogue.BASES[name]
        return _of_catalogue(entry)
    if name.startswith(weights.HUB):
        repo, _, revision = name.removeprefix(weights.HUB).partition("@")
        return _cached(repo, revision or None)
    return of_path(Path(name).expanduser())


def _of_alpha(base: str, tag: str) -> str | None:
    """The fingerprint of alpha weights; empty where the base needs none."""
    if not tag:
        return ""
    if entry := catalogue.ALPHA.get(base, {}).get(tag):
        return _of_catalogue(entry)
    return of_path(Path(tag).expanduser())


def _of_catalogue(entry: KnownFile) -> str | None:
    """The fingerprint of a catalogue entry; None: its hash is not known. The bundled files are hashed themselves."""
    known = entry.sha256 or (sha256(weights.ASSETS / entry.file) if entry.repo is None else None)
    return known and known[:16]


def of_path(path: Path) -> str | None:
    """The fingerprint of a file, or of all files in a folder that are not hidden; None: the path does not exist."""
    if path.is_dir():
        files = (file for file in path.rglob("*") if not _is_hidden(file.relative_to(path)))
        return of_files(files, path, _hashed)
    return of_files([path], path.parent, _hashed) if path.is_file() else None


def places(names: Iterable[str]) -> Iterator[Path]:
    """All paths that models' names may stand for on this disk."""
    for name in names:
        yield from (Path(part).expanduser() for part in (name, name.partition(":")[2], *_MARKS.split(name)) if part)


def cut_off(names: Iterable[str]) -> Path | None:
    """The first damaged safetensors file among those that models' names stand for on this disk."""
    for place in places(names):
        for file in sorted(place.glob("*.safetensors")) if place.is_dir() else [place]:
            try:
                if file.suffix == ".safetensors" and file.is_file():
                    with safe_open(file, "pt"):
                        pass
            except SafetensorError:
                return file
    return None


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _cached(repo: str, revision: str | None = None) -> str | None:
    """The fingerprint of a repository's weights and config.json in the Hub's cache.

    Other files do not count: they come and go with what other programs ask for.
    """
    from huggingface_hub import try_to_load_from_cache

    asked = (try_to_load_from_cache(repo, file, revision=revision) for file in ("config.json", *WEIGHT_FILES))
    folder = next((Path(file).parent for file in asked if isinstance(file, str)), None)
    if folder is None:
        return None
    found = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    return of_files([*found, folder / "config.json"], folder, _hashed) if found else None
