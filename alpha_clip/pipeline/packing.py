"""Write samples into tar shards that the trainer reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import IO, Any

from .alike import marked
from .ledger import Ledger
from .samples import Sample


def write(samples: Iterable[Sample], file: IO[bytes], ledger: Ledger) -> None:
    """Write a shard, whose bytes follow from the samples alone; count its regions and keep marks of its pictures.

    Raises:
        ImportError: webdataset is not installed.
    """
    ledger.hashes = bytearray()
    with tar_writer()(file, mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write(packed(sample))
            ledger.hashes += marked(sample.image, sample.caption)
            ledger.regions["written"] += len(sample.targets)


def tar_writer() -> Any:
    """The class `webdataset.TarWriter`.

    Raises:
        ImportError: webdataset is not installed.
    """
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise ImportError('writing shards needs webdataset: pip install "alpha-clip[pipeline]"') from error
    return TarWriter


def packed(sample: Sample) -> dict[str, str | bytes]:
    """The files of a sample, as `webdataset.TarWriter` takes them and `RegionShards` reads; the picture is unchanged.

    Raises:
        ValueError: a number in a field or a score is NaN or infinite, which JSON cannot hold.
    """
    record = {**sample.fields, "caption": sample.caption, "regions": _regions(sample)}
    try:
        text = json.dumps(record, allow_nan=False)
    except ValueError as error:
        remedy = "expected finite numbers in its fields and scores"
        raise ValueError(f"the record of {sample.key} cannot be written as JSON ({error}): {remedy}") from error
    return {"__key__": sample.key, sample.suffix: sample.data, "json": text.encode()}


def _regions(sample: Sample) -> Sequence[dict[str, Any]]:
    return [
        {
            "phrase": target.phrase,
            "mask": None if target.mask is None else target.mask.rle,
            "box": [round(corner, 2) for corner in target.box],
            "score": target.score,
        }
        for target in sample.targets
    ]
