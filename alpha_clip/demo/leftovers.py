"""Delete the files that uploads and strokes leave behind, once they are old.

Gradio has a timer of its own (`delete_cache`), but a file that arrives while it goes through its list ends it silently
and for good (seen in 6.31), and later strokes stay.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress


class Leftovers:
    """A folder of temporary files, into which others write at the same time.

    Args:
        folder: the folder. Files that are in it now are never deleted.
        age: seconds after which a file that was neither written nor handed out since is deleted.
    """

    def __init__(self, folder: str | os.PathLike[str], age: float) -> None:
        self._folder, self._age = os.fspath(folder), age
        self._lasting = {os.path.join(parent, name) for parent, _, names in os.walk(self._folder) for name in names}

    def delete_old(self) -> None:
        """Delete old files and old empty subfolders. What cannot be deleted now is tried again next time."""
        until = time.time() - self._age
        for parent, _, names in os.walk(self._folder, topdown=False):
            for path in {os.path.join(parent, name) for name in names} - self._lasting:
                with suppress(OSError):  # it is gone already, or open on Windows
                    status = os.stat(path)
                    # The time of change, too: a copy has its original's time of modification.
                    if max(status.st_mtime, status.st_ctime) < until:
                        os.remove(path)
            if parent != self._folder:
                with suppress(OSError):
                    if os.stat(parent).st_mtime < until:
                        os.rmdir(parent)
