"""SHA-256 of files, cached beside the file, and of weights."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from . import atomic


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Return the first 16 hex digits of the SHA-256 over all names and weights.

    With a ``dtype``, weights are cast to it first: a model in half precision and its copy in single are then the same.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        as_bytes = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous().flatten().view(torch.uint8)
        digest.update(as_bytes.numpy().data)
    return digest.hexdigest()[:16]


def known_sha256(path: Path) -> str:
    """Cached `sha256`: the file is read again only if its size or modification time changed."""
    path = path.resolve()
    before = _stamp(path)
    with suppress(OSError, ValueError, AttributeError, KeyError):  # no record, or one that was tampered with
        record = json.loads(_record(path).read_text())
        if {k: record.get(k) for k in before} == before:
            return str(record["sha256"])
    found = sha256(path)
    if _stamp(path) == before:  # else it changed while it was read
        _remember(path, {"sha256": found, **before})
    return found


def forget(path: Path) -> None:
    """Delete the cached hash of `path`."""
    _record(path.resolve()).unlink(missing_ok=True)


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256.json")


def _stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _remember(path: Path, record: dict[str, object]) -> None:
    with suppress(OSError):  # a folder that cannot be written to costs a second reading, no more
        atomic.write_text(_record(path), json.dumps(record))
