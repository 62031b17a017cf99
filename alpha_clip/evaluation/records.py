"""The answers about each sample, one JSON line for each way of looking, so that a run can resume where it stopped."""

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
    """How a question was answered. ``rank`` counts the options that scored above the best right one: 0 is right."""

    right: str  # the right name, or the phrase in question
    rank: int
    region: int  # the one in question, or, if a region was looked for, the one chosen
    group: str = ""  # the part of the data set, or the kind of question
    top: tuple[str, ...] = ()  # the best names, best first


@dataclass(frozen=True)
class Record:
    """The answers of one model, looking in one way, about one sample."""

    key: str
    model: str
    way: str
    answers: tuple[Answer, ...]
    regions: int
    forwards: float  # pictures that went through the image tower
    seconds: float  # to prepare and encode them
    features: tuple[str, ...] = ()  # packed, one for each part of the way; kept if answers wait for all samples

    @property
    def id(self) -> tuple[str, str, str]:
        return self.key, self.model, self.way


def packed(features: Tensor) -> str:
    """Encode features (K, D) of unit length as float16 in base64; cosines change by less than 0.001."""
    return base64.b64encode(features.numpy().astype("<f2").tobytes()).decode("ascii")


def unpacked(text: str, rows: int) -> Tensor:
    """Decode what `packed` encoded: (rows, D) float32."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32).reshape(rows, -1))


class Journal:
    """The records of a run in a folder: ``records.jsonl``, with its data set and models in ``run.json``.

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
        """Append records; a crash may lose some of them, or cut one, which the next `Journal` drops."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(record)) + "\n" for record in records)


def _claim(path: Path, identity: Mapping[str, Any]) -> None:
    """Write down data set and models; later runs may add models, but not change what a name stands for."""
    wanted = json.loads(json.dumps(identity))
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if other := sorted(key for key in wanted if key in found and found[key] != wanted[key]):
        raise ValueError(
            f"{path.parent} holds a run with another {', '.join(other)}: choose another folder, or delete this one"
        )
    if found | wanted != found:
        atomic.write_text(path, json.dumps(found | wanted, indent=1) + "\n")


def _drop_half_a_line(path: Path) -> None:
    """Remove what a killed run left after the last complete line."""
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
