"""Search a `RegionIndex` faster, but perhaps miss a hit, with FAISS's graph of neighbours (HNSW, arXiv 1603.09320).

INDEX/regions.faiss    the graph, with the features in single precision
INDEX/covered.json     which rows of the index are in it
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .index import Hit, RegionIndex, write

_NEIGHBOURS, _EFFORT = 32, 128  # neighbours of each row in the graph; rows visited by a search


def is_installed() -> bool:
    return find_spec("faiss") is not None


def is_behind(index: RegionIndex) -> bool:
    """Whether there is anything for `update` to do."""
    rows, covered = len(index.owners), _covered(index)
    is_covered = covered["rows"] == rows and covered["live"] == _digest(index, rows) and _path(index).exists()
    return rows > 0 and not is_covered


def update(index: RegionIndex) -> None:
    """Bring the graph up to date: add new rows, or rebuild it if others were removed."""
    import faiss

    rows = len(index.live)
    if (graph := _read(index)) is None:
        graph = faiss.IndexIDMap2(faiss.IndexHNSWFlat(index.settings.width, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT))
        covered = 0
    else:
        covered = _covered(index)["rows"]
    for start, features in index.blocks():
        numbers = np.arange(start, start + len(features))
        wanted = index.live[numbers] & (numbers >= covered)
        if wanted.any():
            graph.add_with_ids(features[wanted], numbers[wanted])
    if rows > covered:
        part = _path(index).with_name("regions.faiss.part")
        faiss.write_index(graph, str(part))
        os.replace(part, _path(index))
        write(index.folder / "covered.json", json.dumps({"rows": rows, "live": _digest(index, rows)}).encode())


def search(index: RegionIndex, queries: NDArray[np.float32], k: int) -> list[list[Hit]] | None:
    """Like `RegionIndex.search`; None if there is no graph, or it does not cover the current index."""
    import faiss

    graph = _read(index)
    if graph is None or _covered(index)["rows"] != len(index.live):
        return None
    inner: Any = faiss.downcast_index(graph.index)
    k = min(k, max(1, len(index)))
    inner.hnsw.efSearch = max(_EFFORT, k)
    scores, rows = graph.search(queries, k)
    return index.hits(np.where(rows < 0, -np.inf, scores), rows)


def _read(index: RegionIndex) -> Any:
    """Read the graph; None if there is none, or its rows are no longer those of the index."""
    import faiss

    covered = _covered(index)
    if not _path(index).exists() or covered["live"] != _digest(index, covered["rows"]):
        return None
    try:
        graph = faiss.read_index(str(_path(index)))
    except RuntimeError:  # damaged: delete it, so that it is made again
        with suppress(OSError):
            _path(index).unlink()
        return None
    return graph if graph.ntotal == index.live[: covered["rows"]].sum() else None


def _path(index: RegionIndex) -> Path:
    return index.folder / "regions.faiss"


def _covered(index: RegionIndex) -> dict[str, Any]:
    with suppress(OSError, ValueError, TypeError, LookupError):  # there is none, or it is damaged
        covered = json.loads((index.folder / "covered.json").read_bytes())
        return {"rows": int(covered["rows"]), "live": str(covered["live"])}
    return {"rows": 0, "live": ""}


def _digest(index: RegionIndex, rows: int) -> str:
    """Hash the live keys of the first rows; it differs when one of their pictures was changed or forgotten."""
    keys = (key if live else "" for key, live in zip(index.owners[:rows], index.live, strict=False))
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()
