"""Keep pictures as files that a browser can ask for.

Gradio would write a picture anew, in place, for each visitor and event that shows it; a browser that asks meanwhile
gets a part of it (seen in 6.31).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from PIL import Image


class Pictures:
    """A folder where each picture is written once and whole, under a name that cannot be guessed from the picture."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder, self._key = Path(folder), secrets.token_bytes(32)
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, picture: Image.Image) -> str:
        """The file of an RGB picture, written if needed, with the current time as its time of modification."""
        name = hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), key=self._key, digest_size=32)
        path = self._folder / f"{name.hexdigest()}.jpg"
        try:
            os.utime(path)
        except FileNotFoundError:
            beginning = path.with_suffix(f".{secrets.token_hex(8)}")
            picture.save(beginning, "JPEG", quality=90, subsampling=0)
            beginning.replace(path)
        return str(path)
