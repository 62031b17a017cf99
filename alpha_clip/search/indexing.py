"""Index the pictures of a folder."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import zipfile
from collections.abc import Callable
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
from . import approximate
from .index import IndexedPicture, RegionIndex, Settings, Stamp, records

KINDS = {kind for kind, name in Image.registered_extensions().items() if name in Image.OPEN}
UNREADABLE = (  # what Pillow, NumPy and json raise for damaged pictures and files of masks
    OSError, ValueError, TypeError, SyntaxError, EOFError, zipfile.BadZipFile, Image.DecompressionBombError,
)  # fmt: skip
PART = 32  # pictures written at a time, so at most this many are lost when the process is killed
LIST = 1024  # the same for known pictures with a new path or stamp


def _tell(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def pictures_in(folder: Path, tell: Callable[[str], None] = _tell) -> list[Path]:
    """All pictures in a folder and its subfolders, including links, but not the files of masks.

    `tell` gets a line for each folder that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: expected one of pictures")
    found = []
    for place, _, names in os.walk(folder.resolve(), onerror=lambda e: tell(_skipped(e.filename, e.strerror))):
        found += [path for name in names if _is_picture(path := Path(place, name))]
    return sorted(found)


def _is_picture(path: Path) -> bool:
    if path.suffix.lower() not in KINDS or path.stem.endswith(".masks"):
        return False
    return path.is_file() or not path.exists()  # a broken link is reported later, as unreadable


def _files_of(path: Path) -> list[Path]:
    masks = mask_file(path)
    return [path, masks] if masks else [path]


def key_of(path: Path) -> str:
    """SHA-256 of the bytes of a picture and of its file of masks, if any."""
    digest = hashlib.sha256()
    for file in _files_of(path):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def stamp_of(path: Path) -> Stamp:
    """Size, modification time and inode of the files; `key_of` stays the same while these do.

    The inode shows when pictures of equal size and time swapped names. For a broken link, the stamp is that of the
    link itself.
    """
    stats = [file.stat() if file.exists() else file.lstat() for file in _files_of(path)]
    return [[stat.st_size, stat.st_mtime_ns, stat.st_ino] for stat in stats]


@torch.no_grad()
def look(
    path: Path, key: str, stamp: Stamp | None, picture: Image.Image, masks: Masks, model: CLIP, method: str
) -> IndexedPicture:
    """Embed the regions of a picture."""
    if len(masks) == 0:
        features = np.zeros((0, model.visual.output_dim), np.float32)
    else:
        features = embed_regions(model, picture, masks, method).float().cpu().numpy()
    return IndexedPicture(str(path), key, records(features, masks), stamp)


def fill(
    index: RegionIndex, folder: Path, model: CLIP, source: Source, tell: Callable[[str], None] = _tell
) -> tuple[int, int, int]:
    """Index what is new in a folder, and update FAISS's graph if FAISS is installed.

    What was done is written even on an error or an interrupt. Untouched pictures are not read again; if all are
    untouched, no lock is taken.

    Args:
        tell: gets a line for each unreadable picture, and one at the start if there is no progress bar; by default it
            writes to the standard error.

    Returns:
        How many pictures were indexed, were known already, and could not be read.

    Raises:
        ValueError: there is no such folder.
        RuntimeError: something is new, but another process is adding to the index or it is read-only; or `source` is
            `when_needed`, and cannot be loaded.
    """
    paths = pictures_in(folder, tell)
    with_graph = approximate.is_installed() and index.is_writable
    touched = sum(not _is_untouched(index, path) for path in paths)
    if touched == 0 and not (with_graph and approximate.is_behind(index)):
        broken = sum(str(path) in index.damaged for path in paths)
        return 0, len(paths) - broken, broken
    with index.alone():
        if touched and not (sys.stderr and sys.stderr.isatty()):
            tell(f"indexing {touched} picture{'s' if touched > 1 else ''} of {folder}")
        counts = _add(index, paths, model, source, tell)
        if with_graph:
            approximate.update(index)
    return counts


def _is_untouched(index: RegionIndex, path: Path) -> bool:
    stamp = index.stamps.get(str(path))
    return stamp is not None and _stamp_now(path) == stamp


def _stamp_now(path: Path) -> Stamp | None:
    try:
        return stamp_of(path)
    except OSError:  # it was removed meanwhile
        return None


def _add(
    index: RegionIndex, paths: list[Path], model: CLIP, source: Source, tell: Callable[[str], None]
) -> tuple[int, int, int]:
    done = known = broken = 0
    waiting: list[IndexedPicture] = []
    keys = set(index.keys)
    try:
        for path in tqdm(paths, disable=None, unit="picture"):
            if _is_untouched(index, path):
                broken, known = (broken + 1, known) if str(path) in index.damaged else (broken, known + 1)
                continue
            picture, stamp = None, None
            try:
                stamp = stamp_of(path)
                key = key_of(path)
                picture = None if key in keys else _picture(index, path)
                shown = None if picture is None else masks_of(path, picture, source)
                if stamp_of(path) != stamp:  # somebody is writing to it: the next run reads it again
                    stamp = None
            except UNREADABLE as error:
                tell(_skipped(path.name, error))
                broken += 1
                index.forget(str(path))
                is_in_the_files = picture is None or mask_file(path) is not None  # and not the fault of `source`
                if is_in_the_files and _is_lasting(error) and stamp is not None and _stamp_now(path) == stamp:
                    waiting.append(IndexedPicture(str(path), None, None, stamp))
                continue
            if shown is not None:
                waiting.append(look(path, key, stamp, *shown, model, index.settings.method))
                done += 1
            else:
                known += 1
                waiting.append(IndexedPicture(str(path), key, None, stamp))  # a copy, moved, or touched
            keys.add(key)
            if (shown is not None and done % PART == 0) or len(waiting) == LIST:
                index.add(waiting)
                waiting = []
    finally:
        index.add(waiting)
    return done, known, broken


def _picture(index: RegionIndex, path: Path) -> Image.Image:
    picture = upright(path)
    index.check_room_for(str(path))
    return picture


def _is_lasting(error: BaseException) -> bool:
    """Whether the file itself is damaged; permission, disk and network errors may be gone next time.

    Pillow's errors have no errno. A file that is not found is a broken link here, as a removed one has no stamp.
    """
    return not isinstance(error, OSError) or error.errno in (None, errno.ENOENT)


def _skipped(name: str, error: object) -> str:
    return f"skipped {name}: {error}".splitlines()[0]


def cache_folder(pictures: Path, settings: Settings) -> Path:
    """The default place for the index of a folder with these settings, in ~/.cache."""
    described = f"{pictures.resolve()} {settings}"
    return Path(OUR_CACHE).expanduser() / "search" / hashlib.sha256(os.fsencode(described)).hexdigest()[:16]


def load(name: str, device: str | None, method: str, masks: str, alpha: str | None = "auto") -> tuple[CLIP, Settings]:
    """Load a model with `alpha_clip.load`; return it with the settings of an index of its features.

    Args:
        method: one of `embed_regions`.
        masks: where they come from, in words.
    """
    model, _ = api.load(name, device, alpha_vision_ckpt_pth=alpha)
    return model, Settings(name, fingerprint(model, torch.half), model.visual.output_dim, method, masks)
