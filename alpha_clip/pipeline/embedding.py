"""Shards of pictures, with regions or without, to features in Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..evaluation.subjects import find
from ..hashes import fingerprint
from ..regions import METHODS, embed_regions
from ..training.pictures import BadSample, Picture, RegionShards
from ..training.shards import Entry, scanned
from . import fingerprints
from .grit import decoded, escaped
from .ledger import Ledger

Of = Literal["regions", "images"]
Kind = Literal["float32", "float16"]

WHOLE = -1  # the mask id of a feature of the whole picture

_PICTURES = 256  # whose features are a row group, and in memory at a time


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
    chunk: int = 32  # masks at a time, with which the last bits of vectors change
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
        self._hash = fingerprint(self.model)
        self.models = {"model": f"{self.work.model} {self._hash}"}
        # An empty shard has a file of as many columns as the others.
        self._width = embed_regions(self.model, np.zeros((8, 8, 3), np.uint8), np.ones((8, 8)), "whole").shape[1]

    def __call__(self, shard: Path, file: BinaryIO, ledger: Ledger) -> None:
        arrow, parquet = _pyarrow()
        values = arrow.float16() if self.work.dtype == "float16" else arrow.float32()
        columns = {"image_id": arrow.string(), "mask_id": arrow.int32(), "vector": arrow.list_(values, self._width)}
        schema = arrow.schema(columns | {"model": arrow.string()})
        pictures = _pictures(shard, ledger, self.work.of)
        with parquet.ParquetWriter(file, schema) as writer:
            while some := [(picture.key, self.features(picture)) for picture in islice(pictures, _PICTURES)]:
                ids = [(key, number) for key, found in some for number in self._numbers(len(found))]
                vectors = np.concatenate([found for _, found in some]).astype(self.work.dtype)  # (N, D)
                names, numbers = zip(*ids, strict=True) if ids else ((), ())
                packed = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), self._width)
                table = [arrow.array(names, arrow.string()), arrow.array(numbers, arrow.int32()), packed]
                writer.write_table(arrow.table([*table, arrow.array([self._hash] * len(ids))], schema))
                ledger.pictures["written"] += len(some)
                if self.work.of == "regions":
                    ledger.regions["written"] += len(ids)

    def _numbers(self, count: int) -> range:
        return range(WHOLE, 0) if self.work.of == "images" else range(count)

    def features(self, picture: Picture) -> NDArray[np.float32]:
        """(K, D) of its regions, or (1, D) of the whole, of unit length."""
        if self.work.of == "images":
            found = embed_regions(self.model, picture.image, np.ones(picture.image.size[::-1], bool), "whole")
        elif picture.regions:
            masks = [region.mask for region in picture.regions]
            found = embed_regions(self.model, picture.image, masks, self.work.method, chunk=self.work.chunk)
        else:  # a picture with a caption only
            return np.empty((0, self._width), np.float32)
        features: NDArray[np.float32] = found.float().cpu().numpy()
        return features


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
