"""What one visitor has chosen, marked and typed, of which only the latest counts.

Events come in any order: the browser sends a stroke's pictures before it tells of the stroke, and a click may take
seconds to answer. So each comes with the time on the visitor's own clock at which it was done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .marks import Mask
from .viewer import Photo


@dataclass(eq=False)
class Session:
    photo: Photo | None = None  # None: nobody has been here yet, or all has been forgotten
    region: Mask | None = None
    corner: tuple[float, float] | None = None  # the first of a box, in percent, until the second is there
    embedding: Any = None  # SAM's, of the photo
    labels: str = ""  # as typed
    looks: bool = False  # whether the attention is shown
    turn: int = 0  # of the latest mark or picture
    _marked: float = 0  # when the latest mark was made or picture chosen, on the visitor's clock
    _typed: float = 0

    def begin(self, clock: float, labels: str, looks: bool) -> int | None:
        """The turn of a mark or a picture; None: a later one came before it. Over once `turn` is another."""
        self.hear(clock, labels, looks)
        if clock < self._marked:
            return None
        self._marked = clock
        self.turn += 1
        return self.turn

    def hear(self, clock: float, labels: str, looks: bool) -> None:
        """Take what is typed and ticked, unless it was so before what is known."""
        if clock >= self._typed:
            self._typed, self.labels, self.looks = clock, labels, looks

    def open(self, photo: Photo, region: Mask | None = None) -> None:
        """Another picture, of which nothing else is known."""
        self.photo, self.region, self.corner, self.embedding = photo, region, None, None
