"""Read the files of a data set, and tell which versions of them they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..hashes import sha256


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; `what` says in an error what it should hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: expected {what}; see docs/protocols.md for the files and names")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, or was cut off: {error}; fetch it again") from error


def digests(*paths: Path) -> dict[str, str]:
    """The SHA-256 of each file, by its name."""
    return {path.name: sha256(path) for path in paths}


def check_folder(folder: Path, what: str) -> Path:
    """Return `folder`, or raise FileNotFoundError if it is not a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: expected {what}; see docs/protocols.md for the tree")
    return folder
