"""Find the regions of an index that are nearest to texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..model import CLIP
from ..zero_shot import zero_shot_classifier
from . import approximate
from .index import Hit, RegionIndex

SHARED = 0.4  # of the smaller of two regions: with this much in common, they count as the same
SPARE = 10  # search for this many times the wanted hits, as some are the same region


def find(index: RegionIndex, model: CLIP, texts: list[str], k: int, *, exact: bool = False) -> list[list[Hit]]:
    """The k regions nearest to each text, best first; `exact` never uses FAISS's graph, which may miss some."""
    with torch.no_grad():
        queries = zero_shot_classifier(model, texts, ("{}",)).float().cpu().numpy()
    found = approximate.search(index, queries, k) if not exact and approximate.is_installed() else None
    return index.search(queries, k) if found is None else found


def nearest(index: RegionIndex, model: CLIP, text: str, k: int, folder: Path, *, exact: bool = False) -> list[Hit]:
    """The k `distinct` regions nearest to a text in the pictures of a folder, or fewer if there are no more.

    An index may cover several folders, and remembers pictures that were removed.
    """
    folder, wanted = folder.resolve(), SPARE * k
    while True:
        (found,) = find(index, model, [text], wanted, exact=exact)
        hits = distinct([hit for old in found if (hit := _still_in(folder, old)).paths], k)
        if len(hits) == k or (exact and len(found) < wanted):
            return hits
        wanted, exact = 4 * wanted, True  # FAISS's graph may miss some: it is asked only once


def _still_in(folder: Path, hit: Hit) -> Hit:
    """The hit with only those of its paths that still exist in the folder."""
    return replace(hit, paths=tuple(p for p in hit.paths if Path(p).is_relative_to(folder) and Path(p).is_file()))


def distinct(hits: list[Hit], k: int) -> list[Hit]:
    """The first `k` hits, without those that overlap a better one of the same picture, see `SHARED`."""
    chosen: list[Hit] = []
    for hit in hits:
        if len(chosen) == k:
            break
        same = [other.outline for other in chosen if other.paths == hit.paths]
        if all((hit.outline & mask).sum() < SHARED * min(hit.outline.sum(), mask.sum()) for mask in same):
            chosen.append(hit)
    return chosen
