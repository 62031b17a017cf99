"""Class folders, ROOT/CLASS/*.jpg, as ImageNet has them: which there are, their names, their pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..training.records import BadSample, parsed
from ..training.shards import IMAGES
from .grit import decoded
from .samples import Sample


def class_folders(roots: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The folders in `roots`, but for hidden ones, in the order of their names.

    Raises:
        NotADirectoryError: a root is no folder. FileNotFoundError: there are no folders in it.
    """
    found: list[Path] = []
    for root in map(Path, roots):
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is no folder: expected one with a folder of pictures for each class")
        classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not classes:
            raise FileNotFoundError(f"{root} holds no folders, expected one with pictures for each class")
        found += classes
    return found


def read_names(file: Path) -> dict[str, str]:
    """Names of class folders, from JSON, ``{"n01440764": "tench"}``, or from lines, ``n01440764 tench, Tinca tinca``.

    In a line the folder ends at the first tab, or if there is none at the first space. Of synonyms with commas between
    them, as in ImageNet's list of synsets, the first is taken. Underscores are spaces.

    Raises:
        ValueError: the file holds something else. OSError: it cannot be read.
    """
    text = file.read_text(encoding="utf-8")
    if file.suffix.lower() == ".json":
        try:
            pairs = list(parsed(text.encode()).items())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    else:
        pairs = [_pair(line) for line in text.splitlines() if line.strip()]
    names: dict[str, str] = {}
    for folder, said in pairs:
        name = _readable(said.partition(",")[0]) if isinstance(said, str) else ""
        if not name:
            raise ValueError(f"{file} gives {folder!r:.60} the name {said!r:.60}, expected words")
        names[folder] = name
    if not names:
        raise ValueError(f"{file} holds no names, expected lines such as 'n01440764 tench', or JSON")
    return names


def _pair(line: str) -> tuple[str, str]:
    folder, _, name = line.strip().partition("\t" if "\t" in line.strip() else " ")
    return folder.strip(), name


def _readable(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def class_name(folder: Path, names: Mapping[str, str] | None) -> str:
    """The name in `names`; where that is None, the folder's own, with spaces for underscores.

    Raises:
        ValueError: there are names and none for this folder, or the folder's own has no words.
    """
    name = _readable(folder.name) if names is None else names.get(folder.name, "")
    if not name:
        remedy = "rename it" if names is None else "add one, or give no names, and classes are called as their folders"
        raise ValueError(f"the class in the folder {folder.name!r} has no name: {remedy}")
    return name


def files_in(folder: Path) -> list[Path]:
    """All files in a folder and those in it, in an order that does not depend on the disk."""
    return sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)


def pictures_in(folder: Path) -> list[Path]:
    """Those of `files_in` that by their suffix are pictures which the trainer reads."""
    return [path for path in files_in(folder) if path.suffix.lower().removeprefix(".") in IMAGES]


def source(folder: Path, path: Path) -> str:
    """Where a picture of a class comes from: CLASS/..., the path below the folder of all classes."""
    return path.relative_to(folder.parent).as_posix()


def read(folder: Path, path: Path) -> Sample:
    """A picture of a class, without regions, under its `source`.

    Raises:
        BadSample: it cannot be read, or has too many pixels, as in `grit.decoded`.
    """
    key = source(folder, path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadSample(key, f"the picture cannot be read: {error}", "unreadable picture") from error
    image, suffix = decoded(key, data)
    return Sample(key, data, suffix, image, None, ())
