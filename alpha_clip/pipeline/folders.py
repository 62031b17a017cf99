"""Class folders, ROOT/CLASS/*.jpg, as in ImageNet: list them, name their classes, read their pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..training.records import BadSample, parsed
from ..training.shards import IMAGES
from .grit import decoded, escaped
from .samples import Sample

# Suffixes of pictures that are not read.
OTHERS = ("avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "tif", "tiff")


def class_folders(roots: Iterable[str | os.PathLike[str]], output: Path | None = None) -> list[Path]:
    """The folders in `roots`, and links to folders, without hidden ones, sorted by name.

    Raises:
        NotADirectoryError: a root is no folder.
        FileNotFoundError: a root holds no folders, or a link that leads nowhere.
        ValueError: a folder's name is not in UTF-8, or `output` lies in a root or a class and would be read as a part.
    """
    found: list[Path] = []
    for root in map(Path, roots):
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is no folder: expected one with a folder of pictures for each class")
        there = sorted(path for path in root.iterdir() if not path.name.startswith("."))
        classes = [path for path in there if path.is_dir()]
        if not classes:
            raise FileNotFoundError(f"{root} holds no folders, expected one with pictures for each class")
        if lost := next((path for path in there if path.is_symlink() and not path.exists()), None):
            raise FileNotFoundError(f"{lost} is a link to nowhere, expected the folder of a class: mend or delete it")
        if odd := next((path for path in classes if escaped(path.name) != path.name), None):
            raise ValueError(f"the folder {escaped(odd.name)} in {root} has a name that is not in UTF-8: rename it")
        _check_apart(output, [root, *classes])
        found += classes
    return found


def _check_apart(output: Path | None, places: Iterable[Path]) -> None:
    if output is None:
        return
    if place := next((place for place in places if output.resolve().is_relative_to(place.resolve())), None):
        remedy = "choose one elsewhere, to which what is done can be moved"
        raise ValueError(f"the output folder {output} lies in {place}, and would be read as pictures: {remedy}")


def read_names(file: Path) -> dict[str, str]:
    """Read names of class folders from JSON, ``{"n01440764": "tench"}``, or lines, ``n01440764 tench, Tinca tinca``.

    In a line the folder ends at the first tab, or if there is none at the first space. Only the first of several
    synonyms with commas between them is used, as in ImageNet's list of synsets. Underscores become spaces.

    Raises:
        ValueError: the file holds something else.
        OSError: the file cannot be read.
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
    """The name that `names` gives to a class folder; without `names`, the folder's own, with spaces for underscores.

    Raises:
        ValueError: `names` has none for this folder, or the folder's own name has no words.
    """
    name = _readable(folder.name) if names is None else names.get(folder.name, "")
    if not name:
        remedy = "rename it" if names is None else "add one, or give no names, and classes are called as their folders"
        raise ValueError(f"the class in the folder {folder.name!r} has no name: {remedy}")
    return name


def files_in(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, links followed, in an order that does not depend on the disk.

    Folders that cannot be listed, and links back to a folder above, are in the list too, so that they can be reported.
    """
    return sorted(_below(folder, ()))


def _below(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    try:
        stat = os.stat(f"{folder}{os.sep}.")  # fails where files cannot be reached
        names = os.listdir(folder)
    except OSError:
        yield folder
        return
    this = (stat.st_dev, stat.st_ino)
    if this in above:
        yield folder
        return
    for path in map(folder.joinpath, names):
        if os.path.isdir(path):
            yield from _below(path, (*above, this))
        else:
            yield path


def is_picture(path: Path) -> bool:
    """Whether a path of `files_in` has the suffix of a picture, or is no file: `read` takes or rejects it."""
    return _suffix(path) in (*IMAGES, *OTHERS) or not os.path.isfile(path)


def _suffix(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def source(folder: Path, path: Path) -> str:
    """The path of a picture below the folder of all classes: CLASS/..."""
    return path.relative_to(folder.parent).as_posix()


def read(folder: Path, path: Path) -> Sample:
    """Read a picture of a class as a sample without regions, whose key is its `source`.

    Raises:
        BadSample: the picture is of another format, has a name that is not in UTF-8, cannot be read, or has too many
            pixels (`grit.decoded`).
    """
    key = source(folder, path)
    if (shown := escaped(key)) != key:
        raise BadSample(shown, "its name is not in UTF-8: rename it", "malformed name")
    if not os.path.isfile(path):
        raise BadSample(key, _no_file(path), "unreadable picture")
    if _suffix(path) not in IMAGES:
        reason = f"files called .{_suffix(path)} are not read, expected one of {', '.join(IMAGES)}: convert it"
        raise BadSample(key, reason, "picture of another format")
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"the picture cannot be read: {error.strerror}"  # without the path, which differs between machines
        raise BadSample(key, reason, "unreadable picture") from error
    image, suffix = decoded(key, data)
    return Sample(key, data, suffix, image, None, ())


def _no_file(path: Path) -> str:
    if os.path.isdir(path):
        return "it is a folder that cannot be listed, or a link back to one that it lies in: mend or delete it"
    return "it is a link to nowhere" if path.is_symlink() else "it is no file"
