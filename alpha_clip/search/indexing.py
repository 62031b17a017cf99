"""A folder of pictures into an index, and texts into hits."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .. import api
from ..hashes import fingerprint
from ..mask_sources import Masks, Source, mask_file, masks_of
from ..model import CLIP
from ..regions import embed_regions
from ..sources import OUR_CACHE
from ..transforms import upright
from ..zero_shot import zero_shot_classifier
from . import approximate
from .index import Hit, RegionIndex, Seen, Settings, records

KINDS = {kind for kind, name in Image.registered_extensions().items() if name in Image.OPEN}
UNREADABLE = (  # what Pillow, NumPy and json raise at pictures and files of masks that are damaged
    OSError, ValueError, TypeError, SyntaxError, EOFError, zipfile.BadZipFile, Image.DecompressionBombError,
)  # fmt: skip
SHARED = 0.4  # of the smaller of two regions: with so much in common, one lies on the other
SPARE = 10  # times as many hits are looked for as are wanted: some lie on others
PART = 32  # pictures that are written at a time, and lost when the process is killed


def pictures_in(folder: Path) -> list[Path]:
    """All pictures below a folder, links to pictures too, but for the files of masks."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: expected one of pictures")
    return sorted(
        folder.resolve() / path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in KINDS and not path.stem.endswith(".masks") and path.is_file()
    )


def key_of(path: Path) -> str:
    """SHA-256 of the bytes of a picture and of the file of masks beside it, if any."""
    digest, masks = hashlib.sha256(path.read_bytes()), mask_file(path)
    if masks:
        digest.update(masks.read_bytes())
    return digest.hexdigest()


@torch.no_grad()
def look(path: Path, key: str, picture: Image.Image, masks: Masks, model: CLIP, method: str) -> Seen:
    """The regions of a picture, embedded."""
    if len(masks) == 0:
        features = np.zeros((0, model.visual.output_dim), np.float32)
    else:
        features = embed_regions(model, picture, masks, method).cpu().numpy()
    return Seen(str(path), key, records(features, masks))


def fill(index: RegionIndex, folder: Path, model: CLIP, source: Source) -> tuple[int, int, int]:
    """Index what is new in a folder; how many pictures were indexed, were there already, and could not be read.

    Pictures that cannot be read are named on the standard error. Whatever ends it, an interrupt too, what was done is
    written first. Where FAISS is installed its graph is brought up to date.

    Raises:
        ValueError: there is no such folder.
        RuntimeError: another process adds to the index.
    """
    paths = pictures_in(folder)
    with index.alone():
        counts = _add(index, paths, model, source)
        if approximate.is_installed():
            approximate.update(index)
    return counts


def _add(index: RegionIndex, paths: list[Path], model: CLIP, source: Source) -> tuple[int, int, int]:
    done = known = broken = 0
    waiting: list[Seen] = []
    keys = set(index.keys)
    try:
        for path in tqdm(paths, disable=None, unit="picture"):
            try:
                key = key_of(path)
                shown = None if key in keys else masks_of(path, upright(path), source)
            except UNREADABLE as error:
                tqdm.write(f"skipped {path.name}: {error}".splitlines()[0], file=sys.stderr)
                index.forget(str(path))
                broken += 1
                continue
            if shown is not None:
                waiting.append(look(path, key, *shown, model, index.settings.method))
                done += 1
            else:
                known += 1
                if index.pictures.get(str(path)) != key:  # a copy, or moved
                    waiting.append(Seen(str(path), key, None))
            keys.add(key)
            if len(waiting) == PART:
                index.add(waiting)
                waiting = []
    finally:
        index.add(waiting)
    return done, known, broken


def find(index: RegionIndex, model: CLIP, texts: list[str], k: int, *, exact: bool = False) -> list[list[Hit]]:
    """The k regions nearest to each text."""
    with torch.no_grad():
        queries = zero_shot_classifier(model, texts, ("{}",)).float().cpu().numpy()
    found = approximate.search(index, queries, k) if not exact and approximate.is_installed() else None
    return index.search(queries, k) if found is None else found


def nearest(index: RegionIndex, model: CLIP, text: str, k: int, folder: Path, *, exact: bool = False) -> list[Hit]:
    """The k `distinct` regions nearest to a text, of pictures that are still in a folder; fewer if it holds no more.

    An index may be of several folders, and it remembers pictures that are gone.
    """
    folder, wanted = folder.resolve(), SPARE * k
    while True:
        (found,) = find(index, model, [text], wanted, exact=exact)
        hits = distinct([hit for old in found if (hit := _still_in(folder, old)).paths], k)
        if len(hits) == k or (exact and len(found) < wanted):
            return hits
        wanted, exact = 4 * wanted, True  # FAISS's graph, which may miss some, is asked once


def _still_in(folder: Path, hit: Hit) -> Hit:
    """With those of its paths that are left."""
    return replace(hit, paths=tuple(p for p in hit.paths if Path(p).is_relative_to(folder) and Path(p).is_file()))


def distinct(hits: list[Hit], k: int) -> list[Hit]:
    """The first `k`, without those that lie on a better one of the same picture."""
    chosen: list[Hit] = []
    for hit in hits:
        if len(chosen) == k:
            break
        same = [other.outline for other in chosen if other.paths == hit.paths]
        if all((hit.outline & mask).sum() < SHARED * min(hit.outline.sum(), mask.sum()) for mask in same):
            chosen.append(hit)
    return chosen


def cache_folder(pictures: Path, settings: Settings) -> Path:
    """Where an index of a folder lies if nobody says where: below ~/.cache, another one for each of the settings."""
    described = f"{pictures.resolve()} {settings}"
    return Path(OUR_CACHE).expanduser() / "search" / hashlib.sha256(described.encode()).hexdigest()[:16]


def load(name: str, device: str | None, method: str, masks: str, alpha: str = "auto") -> tuple[CLIP, Settings]:
    """A model as `alpha_clip.load` has it, and the settings of an index whose features are its.

    ``method`` is one of `embed_regions`; ``masks`` says in words where they come from.
    """
    model, _ = api.load(name, device, alpha_vision_ckpt_pth=alpha)
    return model, Settings(name, fingerprint(model, torch.half), model.visual.output_dim, method, masks)
