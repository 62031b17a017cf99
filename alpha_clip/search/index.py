"""An index of regions on disk, which can be extended, interrupted, and searched without reading it into memory.

INDEX/index.json       the model of the features, and where the regions came from
INDEX/parts/NAME.npy   some regions, one record each, memory-mapped for searching
INDEX/parts/NAME.json  their pictures; a part counts once this file exists

Every file is written under a temporary name and renamed. A picture is identified by the hash of its bytes, so it is
indexed once, even if it is moved. No picture, damaged ones included, is read again while its size and modification time
stay the same. Only one process adds at a time. An index on a read-only disk is searched as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock, Timeout  # torch and huggingface_hub need it too
from numpy.typing import NDArray
from PIL import Image

from ..atomic import replacing
from ..transforms import mask_box

OUTLINE = 64  # pixels a side at which masks are kept for drawing

Stamp = list[list[int]]  # size, modification time and inode of a picture and of its file of masks, if any

_BLOCK = 65_536  # rows scored at a time


@dataclass(frozen=True)
class Settings:
    """The model and the source of masks that all regions of an index share."""

    model: str
    sha256: str  # of the model's weights
    width: int  # of a feature
    method: str  # of `embed_regions`
    masks: str  # where they come from, in words


@dataclass(frozen=True)
class IndexedPicture:
    """A picture to add to an index."""

    path: str
    key: str | None  # hash of its bytes and of those of its file of masks; None: it is damaged
    regions: NDArray[Any] | None  # from `records`; None: the key is indexed already, only path or stamp are new
    stamp: Stamp | None = None  # when the key was computed; None: read the files again next time


@dataclass(frozen=True)
class Hit:
    """A region that a search found."""

    score: float  # cosine
    paths: tuple[str, ...]  # of the picture and its copies, the last indexed first
    box: tuple[float, float, float, float]  # (x0, y0, x1, y1) in [0, 1] of the picture's width and height
    outline: NDArray[np.bool_]  # (OUTLINE, OUTLINE): the mask, squashed to a square


def records(features: NDArray[np.float32], masks: NDArray[np.float32]) -> NDArray[Any]:
    """(K,) records from features (K, D) and masks (K, H, W), each with a pixel above 0.5."""
    made = np.zeros(len(features), _record(features.shape[1]))
    size = np.array([masks.shape[2], masks.shape[1]] * 2)
    for row, feature, mask in zip(made, features, masks, strict=True):
        coarse = np.asarray(Image.fromarray(mask).resize((OUTLINE, OUTLINE), Image.Resampling.BOX))
        row["feature"], row["box"] = feature, mask_box(mask) / size
        row["outline"] = np.packbits(coarse >= min(0.5, coarse.max()))
    return made


def _record(width: int) -> np.dtype[Any]:
    # In half precision, scores of features of unit length change by less than 0.001.
    return np.dtype([("feature", "<f2", width), ("box", "<f4", 4), ("outline", "u1", OUTLINE**2 // 8)])


class RegionIndex:
    """The index in a folder, from `create` or `open`. What other processes add later is read on entering `alone`."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.pictures: dict[str, str] = {}  # path to key, the latest if the picture was changed
        self.stamps: dict[str, Stamp | None] = {}  # path to stamp
        self.damaged: set[str] = set()  # paths of unreadable pictures, which have only a stamp
        self.keys: set[str] = set()
        self.owners: list[str] = []  # (N,) the key of each row
        self._rows: list[NDArray[Any]] = []  # one array per part
        self._parts: set[str] = set()
        self._live: NDArray[np.bool_] | None = None
        self._take_new()

    @classmethod
    def create(cls, folder: Path, settings: Settings) -> RegionIndex:
        """Open the index in a folder, or create it.

        Raises:
            ValueError: the index there has other settings, or the folder cannot hold one.
        """
        try:
            (folder / "parts").mkdir(parents=True, exist_ok=True)
            if not (folder / "index.json").exists():
                write(folder / "index.json", json.dumps({"version": 1, **asdict(settings)}, indent=1).encode())
        except OSError as error:
            raise ValueError(f"{folder} can hold no index, {error.strerror}: name a folder to write to") from error
        index = cls.open(folder)
        index.check(settings)
        return index

    @classmethod
    def open(cls, folder: Path) -> RegionIndex:
        """Open the index in a folder.

        Raises:
            ValueError: there is none, or it has another version.
        """
        if not (folder / "index.json").exists():
            raise ValueError(f"{folder} holds no index of regions: make one with `RegionIndex.create`")
        try:
            record = dict(json.loads((folder / "index.json").read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(_damaged(folder / "index.json", folder, error)) from error
        if (version := record.pop("version", None)) != 1:
            raise ValueError(f"{folder} is an index of version {version}, expected 1: make it again")
        try:
            return cls(folder, Settings(**record))
        except TypeError as error:
            raise ValueError(_damaged(folder / "index.json", folder, error)) from error

    def check(self, settings: Settings) -> None:
        """Raise ValueError if `settings` differ from the index's, as its regions could not be compared with theirs."""
        made, given = self.settings, settings
        if made.sha256 != given.sha256:
            raise ValueError(
                f"{self.folder} was made with {made.model}, weights {made.sha256[:12]}, and this is {given.model}, "
                f"weights {given.sha256[:12]}: use that model, or another folder"
            )
        for name, was, now in (("method", made.method, given.method), ("masks", made.masks, given.masks)):
            if was != now:
                raise ValueError(
                    f"{self.folder} was made with {name} {was!r}, not {now!r}: use those, or another folder"
                )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock for adding, read what others added, and remove what a killed process left.

        A read-only index is not locked.

        Raises:
            RuntimeError: another process is adding.
        """
        if not self.is_writable:
            self._take_new()
            yield
            return
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                self._remove_left()
                self._take_new()
                yield
        except Timeout as error:
            raise RuntimeError(f"another process adds to {self.folder}: wait for it, or name another folder") from error

    def _remove_left(self) -> None:
        # Leave temporary files of `create`, which holds no lock, and files of others: pictures may lie in this folder.
        ours = (self.folder / "parts", ".*.part"), (self.folder, ".covered.json.*.part"), (self.folder, "*.faiss.part")
        for folder, name in ours:
            for left in folder.glob(name):
                left.unlink()

    def _take_new(self) -> None:
        for part in sorted((self.folder / "parts").glob("*.json")):
            if part.name not in self._parts:
                self._take(part)

    def _take(self, part: Path) -> None:
        """Read one more part.

        Raises:
            ValueError: it is damaged.
        """
        try:
            listed = json.loads(part.read_bytes())
            count = sum(one["rows"] or 0 for one in listed)
            rows = np.load(part.with_suffix(".npy"), mmap_mode="r") if count else None
        except PermissionError:
            raise
        except (OSError, EOFError, ValueError, TypeError, LookupError) as error:
            raise ValueError(_damaged(part, part, error)) from error
        if rows is not None:
            if len(rows) != count:
                raise ValueError(_damaged(part, part, f"{len(rows)} regions where {count} are expected"))
            self._rows.append(rows)
        self._note(listed)
        self._parts.add(part.name)

    def _note(self, listed: Sequence[dict[str, Any]]) -> None:
        for one in listed:
            if one["key"] is None:
                self.forget(one["path"])
                if one["pillow"] == PIL.__version__:  # another version may be able to read it
                    self.stamps[one["path"]] = one["stamp"]
                    self.damaged.add(one["path"])
                continue
            self.damaged.discard(one["path"])
            self.pictures[one["path"]] = one["key"]
            self.stamps[one["path"]] = one.get("stamp")  # the first indexes had no stamps
            if one["rows"] is not None:
                # A picture that another process added at the same time counts only once.
                self.owners += [one["key"] if one["key"] not in self.keys else ""] * one["rows"]
                self.keys.add(one["key"])
        self._live = None

    @property
    def is_writable(self) -> bool:
        return all(os.access(folder, os.W_OK) for folder in (self.folder, self.folder / "parts"))

    def check_room_for(self, path: str) -> None:
        """Raise RuntimeError if the index is read-only, so that the picture at `path` cannot be added."""
        if not self.is_writable:
            raise RuntimeError(f"{path} is not in {self.folder}, which cannot be written to: name another index")

    @property
    def live(self) -> NDArray[np.bool_]:
        """(N,) which rows can be found: not those of pictures that were changed or forgotten."""
        if self._live is None:
            current = set(self.pictures.values())
            self._live = np.array([key in current for key in self.owners], dtype=bool)
        return self._live

    def __len__(self) -> int:
        """The number of regions that can be found."""
        return int(self.live.sum())

    def add(self, pictures: Sequence[IndexedPicture]) -> None:
        """Write pictures to the disk as one part, all or none. Call it within `alone`.

        In a read-only index, new paths of known pictures are kept in memory.

        Raises:
            RuntimeError: the index is read-only, and there are new regions.
        """
        if not pictures:
            return
        listed = [
            {"path": s.path, "key": s.key, "rows": None if s.regions is None else len(s.regions), "stamp": s.stamp}
            | ({"pillow": PIL.__version__} if s.key is None else {})
            for s in pictures
        ]
        if not self.is_writable:
            if new := [seen.path for seen in pictures if seen.regions is not None]:
                self.check_room_for(new[0])
            self._note(listed)
            return
        text = json.dumps(listed).encode()
        part = self.folder / "parts" / f"{len(self._parts):06d}-{hashlib.sha256(text).hexdigest()[:12]}.json"
        found = [seen.regions for seen in pictures if seen.regions is not None]
        rows = np.concatenate([np.zeros(0, _record(self.settings.width)), *found])
        if len(rows):
            write(part.with_suffix(".npy"), rows)
        write(part, text)
        self._take(part)

    def forget(self, path: str) -> None:
        """Stop finding a picture until the index is opened again; its regions stay on the disk."""
        self.pictures.pop(path, None)
        self.stamps.pop(path, None)
        self.damaged.discard(path)
        self._live = None

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[Hit]]:
        """The `k` nearest regions of each query (Q, D) of unit length, best first. Exact: every row is read."""
        best = np.full((len(queries), 0), -np.inf, np.float32)
        which = np.zeros((len(queries), 0), np.int64)
        for start, features in self.blocks():
            scores = queries @ features.T  # (Q, block)
            scores[:, ~self.live[start : start + len(features)]] = -np.inf
            numbers = np.broadcast_to(np.arange(start, start + len(features)), scores.shape)
            best, which = np.hstack([best, scores]), np.hstack([which, numbers])
            order = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best, which = np.take_along_axis(best, order, 1), np.take_along_axis(which, order, 1)
        return self.hits(best, which)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the rows in blocks: the number of the first, and the features (n, D)."""
        start = 0
        for rows in self._rows:
            for first in range(0, len(rows), _BLOCK):
                block = rows["feature"][first : first + _BLOCK].astype(np.float32)
                yield start, block
                start += len(block)

    def hits(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> list[list[Hit]]:
        """The regions in `rows` (Q, k), without those whose score is -inf."""
        paths: dict[str, list[str]] = {}
        for path, key in reversed(self.pictures.items()):
            paths.setdefault(key, []).append(path)
        starts = list(accumulate(map(len, self._rows), initial=0))

        def hit(score: float, row: int) -> Hit:
            part = bisect_right(starts, row) - 1
            record = self._rows[part][row - starts[part]]
            x0, y0, x1, y1 = record["box"].tolist()
            outline = np.unpackbits(record["outline"]).reshape(OUTLINE, OUTLINE).astype(bool)
            return Hit(score, tuple(paths[self.owners[row]]), (x0, y0, x1, y1), outline)

        return [
            [hit(score, row) for score, row in zip(*pair, strict=True) if score > -np.inf]
            for pair in zip(scores.tolist(), rows.tolist(), strict=True)
        ]


def _damaged(path: Path, left: Path, why: object) -> str:
    return f"{path} of the index is damaged ({why}): delete {left}, and what it knew is indexed again"


def write(path: Path, content: bytes | NDArray[Any]) -> None:
    """Write a file whole or not at all, as two processes may create the same index."""
    with replacing(path, sync=True) as part, part.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            np.save(file, content)
