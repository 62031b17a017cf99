"""Read RefCOCO, RefCOCO+ and RefCOCOg from the files of REFER: ``refs(unc).p`` beside ``instances.json``."""

from __future__ import annotations

import argparse
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .annotations import Instances
from .files import check_folder, digests

SPLITTERS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}  # whose split is usually used
IMAGES = "images/mscoco/images/train2014"


@dataclass(frozen=True)
class Reference:
    """An object of a picture, and the phrases that people used for it."""

    picture: int
    annotation: int  # id in instances.json
    phrases: tuple[str, ...]  # in lower case


class Refer:
    """One split of a data set, ``folder/dataset/refs(by).p`` with ``folder/dataset/instances.json``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or there is no such split.
    """

    def __init__(self, folder: Path, dataset: str, by: str, split: str, images: Path) -> None:
        files = check_folder(folder / dataset, "the folder of the data set, with refs(...).p and instances.json")
        path = files / f"refs({by}).p"
        self.images = check_folder(images, "the pictures of COCO's train2014")
        self.references = list(_references(path, split))
        self.instances = Instances(files / "instances.json")
        self.identity = {"dataset": dataset, "by": by, "split": split, **digests(path, self.instances.path)}
        if unknown := [r for r in self.references if r.picture not in self.instances.pictures]:
            raise ValueError(
                f"{path} refers to {len(unknown)} pictures that {self.instances.path} does not list, such as "
                f"{unknown[0].picture}: take both from one archive"
            )

    def by_picture(self) -> dict[int, list[Reference]]:
        """The references of each picture, in the order of the file."""
        found: dict[int, list[Reference]] = {}
        for reference in self.references:
            found.setdefault(reference.picture, []).append(reference)
        return found

    def path(self, picture: int) -> Path:
        return self.images / self.instances.pictures[picture].file


def add_arguments(parser: argparse.ArgumentParser, dataset: str | None = "refcoco") -> None:
    parser.add_argument(
        "--dataset", default=dataset, choices=list(SPLITTERS), help="data set of REFER; default: %(default)s"
    )
    parser.add_argument("--by", help="who split it: unc, google or umd; default: umd for refcocog, else unc")
    parser.add_argument("--split", default="testA", help="testA, testB or val; test or val of refcocog by umd")
    parser.add_argument("--validation", default="val", metavar="SPLIT", help="split for --tune; default: %(default)s")
    parser.add_argument("--images", type=Path, help=f"folder of COCO's train2014; default: {IMAGES} in DIR")


def from_arguments(args: argparse.Namespace, validation: bool) -> Refer:
    by = args.by or SPLITTERS[args.dataset]
    split = args.validation if validation else args.split
    folder = Path(args.data)
    return Refer(folder, args.dataset, by, split, args.images or folder / IMAGES)


def read_refs(path: Path) -> list[dict[str, Any]]:
    """Read the records of a ``refs(...).p``.

    It is a pickle, which could run any code, so only plain values such as numbers, texts and lists are accepted: a
    pickle that names anything to import is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a list of records, was cut off, or holds more than plain values.
    """
    if not path.is_file():
        there = ", ".join(sorted(found.name for found in path.parent.glob("refs(*).p")))
        raise FileNotFoundError(
            f"{path} is not there: expected REFER's references; there is {there or 'none'}; see --by"
        )
    try:
        with path.open("rb") as file:
            # Python 2 wrote these files, with texts as bytes.
            found = _Plain(file, encoding="utf-8", errors="replace").load()
    except _Refused:
        raise
    except Exception as error:  # on a broken file the unpickler may raise nearly anything
        raise ValueError(f"{path} cannot be read, or was cut off: {error!r:.100}; fetch it again") from error
    if not (isinstance(found, list) and found and all(isinstance(reference, dict) for reference in found)):
        raise ValueError(f"{path} holds {type(found).__name__} {found!r:.40}, expected a list of references")
    return found


class _Refused(ValueError):
    """A pickle holds more than plain values."""


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise _Refused(
            f"the pickle asks for {module}.{name}, which REFER's own files do not: it may be an attack; fetch it from "
            "where REFER says"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("the pickle asks for objects from elsewhere, which REFER's own files do not")


def _references(path: Path, split: str) -> Iterator[Reference]:
    found = read_refs(path)
    splits = Counter(str(reference.get("split")) for reference in found)
    if split not in splits:
        there = ", ".join(f"{name} ({count})" for name, count in sorted(splits.items()))
        raise ValueError(f"{path} has no split {split!r}, expected one of {there}")
    for reference in found:
        if reference.get("split") == split:
            try:
                sentences = reference["sentences"]
                phrases = tuple(str(sentence.get("raw") or sentence["sent"]).lower() for sentence in sentences)
                yield Reference(int(reference["image_id"]), int(reference["ann_id"]), phrases)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{path} has a reference without {error}: {reference!r:.100}") from error
