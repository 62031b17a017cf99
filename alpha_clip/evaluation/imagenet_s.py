"""ImageNet-S in the Alpha-CLIP authors' ``imagenet_919.json``: which of 919 classes is the masked object?

As in the authors' evaluation: the centre square of picture and mask, the first WordNet lemma with its underscores,
one sentence, the mean over classes. ``--corrected`` keeps the whole picture and makes the names readable.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .annotations import open_picture
from .files import check_folder, digests, read_json
from .samples import Column, Naming, Sample, Task, UnusableSample
from .tune import add_hold_back, is_held_back

METHODS = ("alpha", "alpha_box", "whole", "maskclip", "red_circle", "crop", "masked_crop", "blur")
LIST = "imagenet_919.json"
_FIELDS = {"category_word": str, "image_pth": str, "mask": dict}


def task(folder: Path, names: Path, corrected: bool = False, hold_back: float = 0.0, validation: bool = False) -> Task:
    """Ask about all entries of ``folder/imagenet_919.json``.

    Args:
        names: a file that `read_names` reads.
        corrected: use whole pictures and readable names.
        hold_back: share of the pictures kept for validation only.
        validation: use that share instead of the rest.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or does not name all classes.
    """
    path = check_folder(folder, f"the folder with {LIST} and ImageNetS919/") / LIST
    entries = _entries(path)
    named = _classes(entries, read_names(names), names, spaces=corrected)
    if hold_back:
        entries = [e for e in entries if is_held_back(e["image_pth"], hold_back) == validation]
    classes = tuple(dict.fromkeys(named.values()))
    number = {name: i for i, name in enumerate(classes)}
    keys = _keys(entries)

    def read(index: int) -> Sample:
        entry = entries[index]
        shown = open_picture(folder / entry["image_pth"], keys[index], [entry["mask"]])
        image, mask = shown.image, shown.regions[0].mask
        if not corrected:
            image, mask = centre(image, mask)
            if not (mask > 0.5).any():
                raise UnusableSample(f"{keys[index]}: nothing of the region is in the centre square; see --corrected")
        return Sample(keys[index], image, mask[None], (Naming(0, classes, number[named[entry["category_word"]]]),))

    columns = [Column("top-1", per_class=True), Column("top-5", k=5, per_class=True)]
    identity = {**digests(path, names), "corrected": corrected, "held back": hold_back, "validation": validation}
    pictures = [str((folder / entry["image_pth"]).resolve()) for entry in entries]
    return Task("imagenet-s", keys, read, columns, identity=identity, pictures=pictures, notes=_notes(named))


def centre(image: Image.Image, mask: NDArray[np.float32]) -> tuple[Image.Image, NDArray[np.float32]]:
    """Crop the largest central square of both, as the authors do before they resize."""
    side = min(image.size)
    left, top = image.width // 2 - side // 2, image.height // 2 - side // 2
    return image.crop((left, top, left + side, top + side)), mask[top : top + side, left : left + side]


def read_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the words of each class, best first, by its WordNet number such as "n01440764".

    ``path`` is WordNet's own ``data.noun``; or ImageNet's ``LOC_synset_mapping.txt`` or ``synset_words.txt``, with
    lines ``n01440764 tench, Tinca tinca``; or JSON, ``{"n01440764": "tench"}`` or with lists of words.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has none of these formats.
    """
    if path.suffix == ".json":
        found = read_json(path, "names of classes")
        if isinstance(found, dict) and all(isinstance(words, (str, list)) and words for words in found.values()):
            return {key: (words,) if isinstance(words, str) else tuple(map(str, words)) for key, words in found.items()}
        raise ValueError(f'{path} holds no names, expected {{"n01440764": "tench", ...}}')
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: expected names of classes; see docs/protocols.md for which files"
        )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = _of_wordnet(lines) if path.name == "data.noun" else _of_lines(lines)
    if not found:
        raise ValueError(f"{path} names nothing, expected lines such as 'n01440764 tench, Tinca tinca'")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=f"folder with {LIST} and ImageNetS919/")
    parser.add_argument(
        "--names", type=Path, metavar="FILE", help="names of the classes; default: data.noun in DIR, WordNet's"
    )
    parser.add_argument("--corrected", action="store_true", help="use whole pictures, and names with spaces")
    add_hold_back(parser)


def from_arguments(args: argparse.Namespace, validation: bool = False) -> Task:
    return task(args.data, args.names or args.data / "data.noun", args.corrected, args.hold_back, validation)


def _entries(path: Path) -> list[dict[str, Any]]:
    found = read_json(path, "the authors' annotations of ImageNet-S")
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path} holds {type(found).__name__}, expected a list of {', '.join(_FIELDS)}")
    for number, entry in enumerate(found):
        for name, kind in _FIELDS.items():
            if not (isinstance(entry, dict) and isinstance(entry.get(name), kind)):
                raise ValueError(f"{path} has in entry {number} no {name}, expected {', '.join(_FIELDS)} in each")
    return found


def _classes(
    entries: Sequence[Mapping[str, Any]], words: Mapping[str, Sequence[str]], path: Path, spaces: bool
) -> dict[str, str]:
    """The name of each class by its WordNet number, in order of first appearance."""
    wanted = list(dict.fromkeys(entry["category_word"] for entry in entries))
    if unknown := [word for word in wanted if word not in words]:
        raise ValueError(
            f"{path} does not name {len(unknown)} of {len(wanted)} classes, such as {unknown[0]}: take WordNet 3.0's"
        )
    old, new = ("_", " ") if spaces else (" ", "_")
    return {word: words[word][0].replace(old, new) for word in wanted}


def _keys(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The pictures' names; a repeated one has its count and the class added."""
    seen: Counter[str] = Counter()
    keys = []
    for entry in entries:
        name = entry["image_pth"]
        seen[name] += 1
        keys.append(name if seen[name] == 1 else f"{name}, {seen[name]}: {entry['category_word']}")
    return keys


def _of_wordnet(lines: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse wndb(5WN): offset, file, type, count of words in hexadecimal, then word, number, word, number, ..."""
    found = [match for line in lines if (match := re.match(r"(\d{8}) \d\d n ([0-9a-f]{2}) (.+)", line))]
    return {f"n{match[1]}": tuple(match[3].split(" ")[: 2 * int(match[2], 16) : 2]) for match in found}


def _of_lines(lines: Sequence[str]) -> dict[str, tuple[str, ...]]:
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    return {pair[0]: tuple(word.strip() for word in pair[1].split(",")) for pair in pairs if len(pair) == 2}


def _notes(named: Mapping[str, str]) -> list[str]:
    shared = sorted(name for name, count in Counter(named.values()).items() if count > 1)
    if not shared:
        return []
    return [
        f"Of {len(named)} classes, some have one name between them ({', '.join(shared)}): nobody can tell them apart, "
        "and they count as one class here."
    ]
