"""What was found of each sample, one JSON line for each way to look at it, so that a run can go on where it stopped."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import atomic


@dataclass(frozen=True)
class Answer:
    """How a question was answered. ``rank`` counts what scored above the best right answer: 0 is right."""

    right: str  # what would have been right: a name, or a phrase
    rank: int
    region: int  # that was asked about, or, where a region is looked for, that was chosen
    group: str = ""  # the part of the data set, or the kind of question
    top: tuple[str, ...] = ()  # the best names, best first


@dataclass(frozen=True)
class Record:
    """The answers about one sample, by one model, looking in one way."""

    key: str
    model: str
    way: str
    answers: tuple[Answer, ...]
    regions: int
    forwards: float  # pictures that went through the image tower
    seconds: float  # of preparing and encoding them
    features: tuple[str, ...] = ()  # of each part of the way, packed, where the answers wait for all samples

    @property
    def id(self) -> tuple[str, str, str]:
        return self.key, self.model, self.way


def packed(features: Tensor) -> str:
    """(K, D) of unit length as float16, which moves a cosine by less than a thousandth, in base64."""
    return base64.b64encode(features.numpy().astype("<f2").tobytes()).decode("ascii")


def unpacked(text: str, rows: int) -> Tensor:
    """(rows, D) float32 of what was `packed`."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32).reshape(rows, -1))


class Journal:
    """The records of a run in a folder, ``records.jsonl``, and, in ``run.json``, what it is a run of.

    Raises:
        ValueError: the folder holds records of another data set or other models.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "records.jsonl"
        _claim(folder / "run.json", identity)
        _drop_half_a_line(self.path)

    def read(self) -> Iterator[Record]:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as lines:
            for line in lines:
                found = json.loads(line)
                answers = tuple(Answer(**a | {"top": tuple(a["top"])}) for a in found.pop("answers"))
                yield Record(**found | {"features": tuple(found["features"])}, answers=answers)

    def write(self, records: list[Record]) -> None:
        """All or, after a crash, perhaps fewer of them, each whole."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(record)) + "\n" for record in records)


def _claim(path: Path, identity: Mapping[str, Any]) -> None:
    """Write down what the run is of; more models may come later, but nothing may be another under the same name."""
    wanted = json.loads(json.dumps(identity))
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if other := sorted(key for key in wanted if key in found and found[key] != wanted[key]):
        raise ValueError(
            f"{path.parent} holds a run with another {', '.join(other)}: choose another folder, or delete this one"
        )
    if found | wanted != found:
        atomic.write_text(path, json.dumps(found | wanted, indent=1) + "\n")


def _drop_half_a_line(path: Path) -> None:
    """What a killed run left behind the last whole line."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                end = start + found + 1
                break
            end = start
        file.truncate(end)
