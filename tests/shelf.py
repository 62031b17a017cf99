"""A catalogue of one base and its alpha weights, small and random, in place of the real one."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import checkpoints
import torch
from torch import Tensor

from alpha_clip import catalogue, sources
from alpha_clip.sources import KnownFile


class Shelf:
    """Two entries, with the bytes of their files. Neither has a source but the disk until a test gives it one."""

    name, tag = "ViT-L/14@336px", "grit20m"
    names = catalogue.ALPHA[name][tag].names  # all spellings of the alpha file

    def __init__(self) -> None:
        self.base_file = _bytes(checkpoints.plain_clip())
        self.alpha_file = _bytes(checkpoints.authors_tower())
        self.base = KnownFile("base.pt", sha256(self.base_file))
        entry = catalogue.ALPHA[self.name][self.tag]
        self.alpha = KnownFile(entry.file, sha256(self.alpha_file), other_names=entry.other_names)
        self.drive_url = ""

    def publish(self, **changes: str | None) -> None:
        """`changes` to where the alpha file is said to lie."""
        self.alpha = replace(self.alpha, **changes)  # type: ignore[arg-type]

    def install(self, folder: Path) -> None:
        """Make it this process's catalogue; the caches are in `folder`."""
        catalogue.BASES, catalogue.ALPHA = {self.name: self.base}, {self.name: {self.tag: self.alpha}}
        sources.OPENAI_CACHE, sources.OUR_CACHE = str(folder / "clip"), str(folder / "alpha_clip")
        sources.DRIVE, sources.TIMEOUT = self.drive_url, 1

    def expected(self) -> dict[str, Tensor]:
        return checkpoints.plain_clip() | {f"visual.{k}": v for k, v in checkpoints.image_tower().items()}


def _bytes(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def assert_equal(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    assert [k for k in expected if not torch.equal(ours[k], expected[k])] == []
