"""Shards of pictures, with regions or without, to features in Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..evaluation.subjects import find
from ..hashes import fingerprint
from ..regions import METHODS, embed_regions
from ..towers import tower_of
from ..training.pictures import BadSample, Picture, RegionShards
from ..training.shards import Entry, scanned
from . import fingerprints
from .grit import decoded, escaped
from .ledger import Ledger

Of = Literal["regions", "images"]
Kind = Literal["float32", "float16"]

WHOLE = -1  # the mask id of a feature of the whole picture

_ROWS = 1024  # of a row group, and in memory at a time


@dataclass(frozen=True)
class Embed:
    """The settings; each is explained by the command's `--help`.

    Raises:
        ValueError: there is no such method, or the chunk is below 1.
    """

    model: str = "tiny"
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
        """What the files depend on. Reads the models' files, for their hashes."""
        kept = {name: value for name, value in asdict(self).items() if name != "device"}
        return {"command": "embed", **kept, f"{fingerprints.WEIGHTS}model": fingerprints.of_clip(self.model)}

    def prepare(self) -> Embedding:
        """Load the model.

        Raises:
            ImportError: pyarrow is not installed. Others: as `evaluation.subjects.find`.
        """
        _pyarrow()
        return Embedding(self, find(self.model, self.device, alone=True).model)


@dataclass
class Embedding:
    """The work with its model loaded: a shard in, a Parquet file out.

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
        rows = self.rows(_pictures(shard, ledger, self.work.of))
        with parquet.ParquetWriter(file, schema) as writer:
            while some := list(islice(rows, _ROWS)):
                names, numbers, vectors = zip(*some, strict=True)
                flat = np.concatenate(vectors).astype(self.work.dtype)
                packed = arrow.FixedSizeListArray.from_arrays(arrow.array(flat), self._width)
                table = [arrow.array(names, arrow.string()), arrow.array(numbers, arrow.int32()), packed]
                writer.write_table(arrow.table([*table, arrow.array([self._hash] * len(some))], schema))
                if self.work.of == "regions":
                    ledger.regions["written"] += len(some)

    def rows(self, pictures: Iterable[Picture]) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
        """Image id, mask id and feature (D,) of all regions, or of the pictures.

        As many as a chunk go through the model at a time, of several pictures too where the method is ``"alpha"``.
        """
        if self.work.of == "regions" and not (self.work.method == "alpha" and self._tower.takes_alpha):
            for picture in pictures:
                if picture.regions:
                    masks = [region.mask for region in picture.regions]
                    found = embed_regions(self.model, picture.image, masks, self.work.method, chunk=self.work.chunk)
                    yield from ((picture.key, i, feature) for i, feature in enumerate(found.float().cpu().numpy()))
            return
        seen = self._seen(pictures)
        while some := list(islice(seen, self.work.chunk)):
            names, numbers, rgb, alpha = zip(*some, strict=True)
            masked = torch.stack(alpha) if self.work.of == "regions" else None
            features = self._tower.encode(torch.stack(rgb), masked).float().cpu().numpy()
            yield from zip(names, numbers, features, strict=True)

    def _seen(self, pictures: Iterable[Picture]) -> Iterator[tuple[str, int, Tensor, Tensor | None]]:
        """Ids, pixels (3, n, n) and mask (1, n, n) of what the model is to see, whole pictures without a mask."""
        for picture in pictures:
            if self.work.of == "images":
                yield picture.key, WHOLE, self._tower.preprocess(picture.image, geometry="pad"), None
            elif picture.regions:
                masks = [region.mask for region in picture.regions]
                rgb, alphas = self._tower.preprocess(picture.image, masks, geometry="pad")
                yield from ((picture.key, i, rgb, alpha) for i, alpha in enumerate(alphas))


def _pictures(shard: Path, ledger: Ledger, of: Of) -> Iterator[Picture]:
    """The pictures of a shard, one after the other, with their regions if these are wanted."""
    for read in _regions(shard) if of == "regions" else _alone(shard):
        ledger.pictures["read"] += 1
        try:
            picture = read()
            if (shown := escaped(picture.key)) != picture.key:  # Parquet's strings are UTF-8
                raise BadSample(shown, "its name is not in UTF-8: rename its files", "malformed name")
        except BadSample as error:
            ledger.reject(error)
        else:
            if of == "regions":
                ledger.regions["read"] += len(picture.regions)
            yield picture
            ledger.pictures["written"] += 1


def _regions(shard: Path) -> Iterator[Callable[[], Picture]]:
    """A picture of which a region is bad is so as a whole."""
    data = RegionShards(shard)
    return (partial(data.__getitem__, number) for number in range(len(data)))


def _alone(shard: Path) -> Iterator[Callable[[], Picture]]:
    """Whatever is said of the pictures: their records are not read, and need not be there."""
    with shard.open("rb") as file:
        for entry in scanned(shard, ("image",)):
            yield partial(_picture, file, entry)


def _picture(file: BinaryIO, entry: Entry) -> Picture:
    if entry.wrong:
        raise BadSample(entry.key, entry.wrong, "malformed shard")
    file.seek(entry.image_at)
    return Picture(entry.key, decoded(entry.key, file.read(entry.image_size))[0], None, ())


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError('Parquet files need pyarrow: pip install "alpha-clip[pipeline]"') from error
    return pyarrow, parquet
