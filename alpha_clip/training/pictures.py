"""Pictures with their regions, read from a folder or from tar shards."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import shards
from .records import BadSample, Picture, Region, make_picture, parsed

__all__ = ["BadSample", "Picture", "Region", "RegionFolder", "RegionShards", "open_data"]

LIST = "regions.jsonl"


class RegionFolder:
    """A data set in a folder with a `regions.jsonl`, one region a line::

        {"image": "cats/1.jpg", "text": "a sleeping cat", "mask": "masks/1.png", "caption": "two cats on a sofa"}

    ``mask`` is the path of a picture that `Preprocess` takes as a mask, a COCO RLE, or a box [x0, y0, x1, y1], and
    belongs to the upright picture. The caption, of the whole picture, is optional. A line may also have a caption
    only, with neither text nor mask. Lines of one image form one `Picture`, whose key is the image's path; pictures
    are in the order of their first lines.

    Relative paths start in the folder and must stay within it. Only the offsets of the lines are kept in memory.

    Raises:
        FileNotFoundError: the folder has no `regions.jsonl`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / LIST).is_file():
            raise FileNotFoundError(f"{self.folder} holds no {LIST}: expected one line for each region in it")
        lines: dict[str, list[int]] = {}
        self._wrong: dict[str, str] = {}
        at = 0
        with (self.folder / LIST).open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        key = _image(parsed(line))
                    except ValueError as error:
                        key = f"{LIST}:{number}"
                        self._wrong[key] = str(error)
                    lines.setdefault(key, []).append(at)
                at += len(line)
        self.keys = list(lines)
        self._lines = list(lines.values())

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Picture:
        """Read one picture.

        Raises:
            BadSample: the picture or one of its regions cannot be read or is not valid.
        """
        key = self.keys[index]
        if key in self._wrong:
            raise BadSample(key, self._wrong[key], "malformed record")
        try:
            data = self._path(key).read_bytes()
        except (OSError, ValueError) as error:
            raise BadSample(key, f"the picture cannot be read: {error}", "unreadable picture") from error
        records = self._records(key, self._lines[index])
        captions = [record["caption"] for record in records if record.get("caption") is not None]
        if any(caption != captions[0] for caption in captions):
            raise BadSample(key, f"it has different captions, expected one: {captions!r:.200}", "malformed record")
        regions = [{**r, "phrase": r.get("text")} for r in records if "text" in r or "mask" in r]
        return make_picture(key, data, captions[0] if captions else None, regions, self._path)

    def _path(self, name: str) -> Path:
        if posixpath.normpath(name).split("/")[0] == "..":
            raise ValueError(f"{name} lies outside of {self.folder}: put it inside, or write an absolute path")
        return self.folder / name

    def _records(self, key: str, starts: list[int]) -> list[dict[str, Any]]:
        records = []
        try:
            with (self.folder / LIST).open("rb") as file:
                for at in starts:
                    file.seek(at)
                    records.append(parsed(file.readline()))
            changed = any(_image(record) != key for record in records)
        except (OSError, ValueError) as error:
            raise BadSample(key, f"{LIST} changed since it was opened: {error}", "malformed record") from error
        if changed:
            raise BadSample(key, f"{LIST} changed since it was opened: start again", "malformed record")
        return records


def _image(record: dict[str, Any]) -> str:
    name = record.get("image")
    if not isinstance(name, str) or not name:
        raise ValueError(f'"image" is {name!r:.60}, expected a path')
    return posixpath.normpath(name)


class RegionShards:
    """A data set in tar shards of the WebDataset layout: each sample is `KEY.jpg` (.jpeg, .png, .webp) and `KEY.json`::

        {"caption": "two cats", "regions": [{"phrase": "a cat", "mask": RLE or null, "box": [...], "score": 0.9}]}

    A region's mask is a COCO RLE of the upright picture, or null for its filled box, [x0, y0, x1, y1].

    ``source`` is a folder of ``*.tar``, a shard, a brace range such as ``shards/{000..009}.tar``, or a list of these.
    Shards at http(s) URLs are fetched into ``cache`` first. The headers of each shard are read once and stored in an
    index file, beside the shard or, if that cannot be written, in ``cache``. After that a sample costs one open, two
    seeks and two reads. No file stays open, so that the data set can be sent to other processes.

    Raises:
        FileNotFoundError: a shard does not exist, or a folder has none.
        ValueError: a brace range is empty.
        ConnectionError: a shard cannot be fetched.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        cache: str | os.PathLike[str] = shards.CACHE,
    ) -> None:
        folder = Path(cache).expanduser()
        self.shards = shards.local(source, folder)
        self.keys: list[str] = []
        self._wrong: dict[int, str] = {}
        spans: list[tuple[int, ...]] = []
        parts = []
        for number, shard in enumerate(self.shards):
            for entry in shards.index(shard, folder):
                if entry.wrong:
                    self._wrong[len(self.keys)] = entry.wrong
                self.keys.append(entry.key)
                spans.append((number, *entry[1:5]))
            parts.append(np.array(spans, dtype=np.int64).reshape(-1, 5))
            spans.clear()
        self._spans = np.concatenate(parts)  # (N, 5): shard, then offset and size of picture and json

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Picture:
        """Read one picture.

        Raises:
            BadSample: the picture or one of its regions cannot be read or is not valid.
        """
        index = range(len(self))[index]
        key = self.keys[index]
        number, image_at, image_size, json_at, json_size = self._spans[index].tolist()
        try:
            if index in self._wrong:
                raise BadSample(key, self._wrong[index], "malformed shard")
            image, text = self._read(key, number, (image_at, image_size), (json_at, json_size))
            try:
                record = parsed(text)
                regions = record.get("regions")
                if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
                    raise ValueError(f'"regions" is {regions!r:.60}, expected a list of records')
            except ValueError as error:
                raise BadSample(key, f"its json: {error}", "malformed record") from error
            return make_picture(key, image, record.get("caption"), regions)
        except BadSample as error:
            raise BadSample(key, f"{error.reason} [{self.shards[number].name}]", error.problem) from error

    def _read(self, key: str, number: int, *spans: tuple[int, int]) -> list[bytes]:
        try:
            with self.shards[number].open("rb") as file:
                parts = []
                for at, size in spans:
                    file.seek(at)
                    parts.append(file.read(size))
        except OSError as error:
            raise BadSample(key, f"the shard cannot be read: {error}", "malformed shard") from error
        if any(len(part) != size for part, (_, size) in zip(parts, spans, strict=True)):
            raise BadSample(key, "the shard became shorter since it was indexed: start again", "malformed shard")
        return parts


def open_data(path: str | os.PathLike[str]) -> RegionFolder | RegionShards:
    """The data set at `path`: a folder with `regions.jsonl`, or what `RegionShards` takes as one source.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: a folder has both, or a brace range is empty.
        ConnectionError: a shard cannot be fetched.
    """
    name, folder = os.fspath(path), Path(path)
    if folder.name == LIST:
        folder = folder.parent
    listed, tars = (folder / LIST).is_file(), folder.is_dir() and any(folder.glob("*.tar"))
    if listed and tars:
        raise ValueError(f"{name} holds both {LIST} and *.tar, expected one: move the shards to a folder of their own")
    if listed:
        return RegionFolder(folder)
    if tars or shards.is_url(name) or name.endswith(".tar"):
        return RegionShards(name)
    what = f"holds neither {LIST} nor *.tar" if folder.exists() else "does not exist"
    raise FileNotFoundError(
        f"{name} {what}: expected a folder of one, a shard, {{000..009}}.tar, or http(s) URLs of it"
    )
