"""Shards as img2dataset writes them from GRIT, of drawn scenes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 96


def jpg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def of_scene(seed: int) -> tuple[str, bytes, dict]:
    """Key, picture and record of a drawn scene."""
    from benchmarks.pipeline import of_scene  # which needs the extra

    return of_scene(seed, SIDE)


def write(path: Path, samples, cut: int | None = None) -> Path:
    """A shard of (key, picture, record); `cut` off so many bytes before its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key, picture, record in samples:
            text = record if isinstance(record, bytes) else json.dumps(record).encode()
            for suffix, data in (("jpg", picture), ("txt", b"ignored"), ("json", text)):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    path.write_bytes(file.getvalue() if cut is None else file.getvalue()[:-cut])
    return path


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file; indexes, which the trainer's reader leaves, are not the pipeline's."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".index.json"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
