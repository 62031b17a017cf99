"""The files of an exported model.

A folder holds a graph for each tower, ``image.onnx`` and ``text.onnx``, each with its weights in a file beside it
(``.onnx.data``), and ``model.json``, which says what they are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..errors import IncompatibleCheckpoint, WeightsError

FORMAT = 1  # of the folder; changes when an older package would misread it
TOWERS = ("image", "text")
_DESCRIPTION = "model.json"


@dataclass(frozen=True)
class Description:
    """The content of ``model.json``: what an exported model is."""

    name: str
    version: str  # of the package that exported it
    weights: str  # "float32" or "int8"
    input_resolution: int
    context_length: int
    vocab_size: int
    features: int  # their number
    logit_scale: float
    sees_masks: bool  # False: the alpha weights are all zero
    known_tokens: list[int] | None  # of a packed vocabulary; None: all are
    format: int = FORMAT


def files(folder: Path) -> list[Path]:
    return [folder / f"{tower}.onnx{ending}" for tower in TOWERS for ending in ("", ".data")]


def write(description: Description, folder: Path) -> None:
    """Write ``model.json``, which needs the graphs to be there: it holds their sizes too."""
    content = asdict(description) | {"bytes": {path.name: path.stat().st_size for path in files(folder)}}
    (folder / _DESCRIPTION).write_text(json.dumps(content), encoding="utf-8")


def read(folder: Path) -> Description:
    """Read the description of the model in `folder`, and check that all its files have the right size.

    Raises:
        WeightsError: there is no exported model.
        IncompatibleCheckpoint: it is not whole, or of a format that this package does not know.
    """
    path = folder / _DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(
            f"{folder} holds no exported model ({_DESCRIPTION}: {error.strerror}): make one with "
            f"python -m alpha_clip.onnx MODEL --out {folder}"
        ) from error
    except ValueError as error:
        raise IncompatibleCheckpoint(f"{path} is not whole ({error}): {_AGAIN}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise IncompatibleCheckpoint(f"{path} is of format {found}, and this package reads {FORMAT}: {_AGAIN}")
    names = {field.name for field in fields(Description)}
    if missing := sorted({*names, "bytes"} - content.keys()):
        raise IncompatibleCheckpoint(f"{path} does not say {', '.join(missing)}: {_AGAIN}")
    for file in files(folder):
        size, expected = file.stat().st_size if file.is_file() else None, content["bytes"].get(file.name)
        if size != expected:
            there = "is not there" if size is None else f"has {size} bytes, expected {expected}"
            raise IncompatibleCheckpoint(f"{file} {there}: {_AGAIN}")
    return Description(**{name: content[name] for name in names})


_AGAIN = "copy the folder again, or export it anew"
