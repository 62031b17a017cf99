"""Embed the pictures of shards, or their regions, and write the features to Parquet files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..catalogue import BUNDLED
from ..evaluation.subjects import find
from ..hashes import fingerprint
from ..regions import METHODS, embed_regions
from ..towers import tower_of
from ..training.records import BadSample, check_caption, make_region, parsed
from ..training.shards import Entry, scanned
from . import fingerprints
from .grit import decoded, escaped
from .ledger import Ledger

Of = Literal["regions", "images"]
Kind = Literal["float32", "float16"]

_T = TypeVar("_T")
_Shown = tuple[Tensor, Tensor | None]  # pixels (3, n, n) and mask (1, n, n), or None for a whole picture

WHOLE = -1  # the mask id of a feature of the whole picture

_ROWS = 1024  # of a row group, and in memory at a time
_PIXELS = 1 << 27  # of masks in memory at a time, or one mask of more: 512 MiB in float32


@dataclass(frozen=True)
class Embed:
    """The settings of `embed`; the command's `--help` explains each.

    Raises:
        ValueError: there is no such method, or the chunk is below 1.
    """

    model: str = BUNDLED
    of: Of = "regions"
    method: str = "alpha"  # of `embed_regions`; for whole pictures, "whole"
    dtype: Kind = "float32"
    chunk: int = 32  # masks or pictures at a time, with which the last bits of vectors change
    device: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}, expected one of {', '.join(METHODS)}")
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}, expected at least 1")

    def settings(self) -> dict[str, Any]:
        """Return what the output depends on, for `settings.json`. Hashes the files of the model."""
        kept = {name: value for name, value in asdict(self).items() if name != "device"}
        return {"command": "embed", **kept, f"{fingerprints.WEIGHTS}model": fingerprints.of_clip(self.model)}

    def prepare(self) -> Embedding:
        """Load the model.

        Raises:
            ImportError: pyarrow is not installed.
            Other errors: as `evaluation.subjects.find`.
        """
        _pyarrow()
        return Embedding(self, find(self.model, self.device, alone=True).model)


@dataclass
class Embedding:
    """`Embed` with its model loaded: writes a Parquet file of each shard.

    A row is ``image_id`` (the sample's key), ``mask_id`` (the region's number; `WHOLE` for the picture), ``vector`` (of
    unit length, a list of fixed size) and ``model`` (16 digits of the SHA-256 of its weights).
    """

    work: Embed
    model: nn.Module
    suffix: str = ".parquet"
    models: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._hash, self._tower = fingerprint(self.model), tower_of(self.model)
        self.models = {"model": f"{self.work.model} {self._hash}"}
        # An empty shard has a file of as many columns as the others.
        self._width = embed_regions(self.model, np.zeros((8, 8, 3), np.uint8), np.ones((8, 8)), "whole").shape[1]

    def __call__(self, shard: Path, file: BinaryIO, ledger: Ledger) -> None:
        arrow, parquet = _pyarrow()
        values = arrow.float16() if self.work.dtype == "float16" else arrow.float32()
        columns = {"image_id": arrow.string(), "mask_id": arrow.int32(), "vector": arrow.list_(values, self._width)}
        schema = arrow.schema(columns | {"model": arrow.string()})
        rows = self.rows(shard, ledger)
        with parquet.ParquetWriter(file, schema) as writer:
            while some := list(islice(rows, _ROWS)):
                names, numbers, vectors = zip(*some, strict=True)
                flat = np.concatenate(vectors).astype(self.work.dtype)
                packed = arrow.FixedSizeListArray.from_arrays(arrow.array(flat), self._width)
                table = [arrow.array(names, arrow.string()), arrow.array(numbers, arrow.int32()), packed]
                writer.write_table(arrow.table([*table, arrow.array([self._hash] * len(some))], schema))
                if self.work.of == "regions":
                    ledger.regions["written"] += len(some)

    def rows(self, shard: Path, ledger: Ledger) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
        """Yield image id, mask id and feature (D,) of all regions of a shard, or of its pictures.

        The model sees `chunk` regions or pictures at a time, with ``"alpha"`` of several pictures.
        """
        if self.work.of == "regions" and not (self.work.method == "alpha" and self._tower.takes_alpha):
            yield from _of_each(shard, ledger, "regions", self._features)
            return
        see = self._whole if self.work.of == "images" else self._masked
        seen = _of_each(shard, ledger, self.work.of, see)
        while some := list(islice(seen, self.work.chunk)):
            names, numbers, shown = zip(*some, strict=True)
            rgb, alpha = zip(*shown, strict=True)
            masked = torch.stack(alpha) if self.work.of == "regions" else None
            features = self._tower.encode(torch.stack(rgb), masked).float().cpu().numpy()
            yield from zip(names, numbers, features, strict=True)

    def _features(self, picture: _Picture) -> list[tuple[int, NDArray[np.float32]]]:
        """Return the mask id and feature (D,) of each region, by a method other than ``"alpha"``."""
        found: list[NDArray[np.float32]] = []
        for masks in picture.masks():
            features = embed_regions(self.model, picture.image, masks, self.work.method, chunk=self.work.chunk)
            found += [*features.float().cpu().numpy()]
        return [*enumerate(found)]

    def _masked(self, picture: _Picture) -> list[tuple[int, _Shown]]:
        """Return the mask id, pixels (3, n, n) and mask (1, n, n) of each region, as the model sees them."""
        found: list[_Shown] = []
        for masks in picture.masks():
            rgb, alphas = self._tower.preprocess(picture.image, masks, geometry="pad")
            found += [(found[0][0] if found else rgb, alpha) for alpha in alphas]
        return [*enumerate(found)]

    def _whole(self, picture: _Picture) -> list[tuple[int, _Shown]]:
        return [(WHOLE, (self._tower.preprocess(picture.image, geometry="pad"), None))]


@dataclass(frozen=True, eq=False)
class _Picture:
    """A picture, upright in RGB, with the records of its regions, whose masks are decoded when they are needed."""

    key: str
    image: Image.Image
    stored: tuple[int, int] = (0, 0)  # (H, W) before it was turned upright
    regions: Sequence[Mapping[str, Any]] = ()

    def masks(self) -> Iterator[list[NDArray[np.float32]]]:
        """Yield all masks, some at a time, so that they fit in memory.

        Raises:
            BadSample: one of them cannot be used.
        """
        size = self.image.size[::-1]
        step = max(1, _PIXELS // (size[0] * size[1]))
        for start in range(0, len(self.regions), step):
            some = enumerate(self.regions[start : start + step], start)
            yield [make_region(self.key, number, region, size, self.stored).mask for number, region in some]


def _of_each(
    shard: Path, ledger: Ledger, of: Of, make: Callable[[_Picture], list[tuple[int, _T]]]
) -> Iterator[tuple[str, int, _T]]:
    """Yield what `make` returns for each picture of a shard, with the picture's key. Bad pictures go into the ledger.

    A picture with a bad region is bad as a whole.
    """
    needed = ("image", "json") if of == "regions" else ("image",)
    with shard.open("rb") as file:
        for entry in scanned(shard, needed):
            ledger.pictures["read"] += 1
            try:
                picture = _picture(file, entry, of)
                made = make(picture)
            except BadSample as error:
                ledger.reject(error)
                continue
            ledger.regions.update({"read": len(picture.regions)} if of == "regions" else {})
            yield from ((picture.key, number, what) for number, what in made)
            ledger.pictures["written"] += 1


def _picture(file: BinaryIO, entry: Entry, of: Of) -> _Picture:
    """Read a picture, and the records of its regions if these are wanted. Otherwise it needs no record."""
    if (key := escaped(entry.key)) != entry.key:  # Parquet's strings are UTF-8
        raise BadSample(key, "its name is not in UTF-8: rename its files", "malformed name")
    if entry.wrong:
        raise BadSample(key, entry.wrong, "malformed shard")
    file.seek(entry.image_at)
    data = file.read(entry.image_size)
    image, _ = decoded(key, data)
    if of == "images":
        return _Picture(key, image)
    file.seek(entry.json_at)
    try:
        record = parsed(file.read(entry.json_size))
        regions = record.get("regions")
        if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
            raise ValueError(f'"regions" is {regions!r:.60}, expected a list of records')
    except ValueError as error:
        raise BadSample(key, f"its json: {error}", "malformed record") from error
    check_caption(key, record.get("caption"), regions)
    with Image.open(io.BytesIO(data)) as stored:
        return _Picture(key, image, stored.size[::-1], regions)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError('Parquet files need pyarrow: pip install "alpha-clip[pipeline]"') from error
    return pyarrow, parquet
