"""Files that sending and painting leave behind, deleted once they are old.

Gradio has a timer of its own (`delete_cache`). A file that arrives while that goes through its list ends it, without a
word and for good (seen in 6.31), and what is painted from then on stays.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress


class Leftovers:
    """A folder of temporary files, in which others write at the same time.

    Args:
        folder: what lies in it now stays.
        age: seconds since a file was last written or handed out, after which it goes.
    """

    def __init__(self, folder: str | os.PathLike[str], age: float) -> None:
        self._folder, self._age = os.fspath(folder), age
        self._lasting = {os.path.join(parent, name) for parent, _, names in os.walk(self._folder) for name in names}

    def delete_old(self) -> None:
        """Delete old files, and old folders below that hold nothing; what cannot be deleted now is tried next time."""
        until = time.time() - self._age
        for parent, _, names in os.walk(self._folder, topdown=False):
            for path in {os.path.join(parent, name) for name in names} - self._lasting:
                with suppress(OSError):  # it is gone already, or open on Windows
                    status = os.stat(path)
                    # A copy has the time of what it was copied from, but not that at which it came to be.
                    if max(status.st_mtime, status.st_ctime) < until:
                        os.remove(path)
            if parent != self._folder:
                with suppress(OSError):
                    if os.stat(parent).st_mtime < until:
                        os.rmdir(parent)
