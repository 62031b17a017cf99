"""Write files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path``, and rename it to ``path`` at the end; after an error, delete it.

    Args:
        path: of the file, in a folder that exists.
        sync: whether to flush the file to the disk first, so that not even a power cut leaves half of it.

    Raises:
        OSError: the temporary file was not written, or cannot be renamed; what was at ``path`` before still is.
    """
    # Machines that share a folder may share process numbers.
    part = path.with_name(f".{path.name}.{os.getpid()}.{uuid4().hex[:8]}.part")
    try:
        yield part
        if sync:
            with part.open("r+b") as file:  # Windows flushes only what is open for writing
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 by `replacing` it."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
