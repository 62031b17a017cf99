"""Pictures with their regions, written to tar shards."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

from .. import rle
from ..atomic import replacing
from ..transforms import mask_box
from .records import Picture

QUALITY = 95  # of the JPEGs


def write_shards(pictures: Iterable[Picture], folder: str | os.PathLike[str], per_shard: int = 1000) -> list[Path]:
    """Write `folder`/000000.tar, 000001.tar, ..., for `RegionShards` and webdataset. Returns their paths.

    The same pictures give the same bytes. Pictures become JPEGs of quality `QUALITY`, masks are cut at 0.5, dots in
    keys become `_`. A shard has a temporary name until it is whole, so that an error leaves only whole shards.

    Raises:
        ValueError: `per_shard` is below 1; the folder has shards already; two keys are equal; a mask is not of its
            picture's size, or has nothing above 0.5.
        ImportError: webdataset or pycocotools is not installed.
    """
    if per_shard < 1:
        raise ValueError(f"per_shard is {per_shard}, expected at least 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.tar")):
        raise ValueError(f"{folder} holds shards already: delete them, or name another folder")
    source, keys, paths = iter(pictures), set[str](), list[Path]()
    while first := next(source, None):
        path = folder / f"{len(paths):06d}.tar"
        _write_shard(path, first, islice(source, per_shard - 1), keys)
        paths.append(path)
    return paths


def _write_shard(path: Path, first: Picture, others: Iterable[Picture], keys: set[str]) -> None:
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise ImportError('writing shards needs webdataset: pip install "alpha-clip[train]"') from error
    with (
        replacing(path) as part,
        part.open("wb") as file,
        TarWriter(file, mtime=0, encoder=False) as writer,
    ):
        for picture in chain([first], others):
            writer.write(_sample(picture, keys))


def _sample(picture: Picture, keys: set[str]) -> dict[str, str | bytes]:
    key = picture.key.lstrip("/").replace(".", "_")  # WebDataset ends a key at the first dot of its base name
    if key in keys:
        raise ValueError(f"{picture.key} would be the second sample with the key {key}: give each a key of its own")
    keys.add(key)
    regions: list[dict[str, Any]] = []
    size = picture.image.size[::-1]
    for region in picture.regions:
        if region.mask.shape != size:
            shape = region.mask.shape
            raise ValueError(
                f"{picture.key}, {region.phrase!r}: the mask has shape {shape}, expected {size}: resize it"
            )
        try:
            box = list(mask_box(region.mask))
        except ValueError as error:
            raise ValueError(f"{picture.key}, {region.phrase!r}: {error}") from error
        mask = rle.encode(region.mask > 0.5)
        regions.append({"phrase": region.phrase, "mask": mask, "box": box, "score": region.score})
    jpg = io.BytesIO()
    picture.image.save(jpg, "JPEG", quality=QUALITY)
    record = {"caption": picture.caption, "regions": regions}
    return {"__key__": key, "jpg": jpg.getvalue(), "json": json.dumps(record, ensure_ascii=False).encode()}
