"""What one visitor has chosen, marked and typed, of which only the latest counts.

Events come in any order: the browser sends a stroke's pictures before it tells of the stroke, and a click may take
seconds to answer. So each comes with the time on the visitor's own clock at which it was done, and with the number of
the picture that was shown then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .marks import Mask
from .viewer import Photo


@dataclass(eq=False)
class Session:
    photo: Photo | None = None  # None: nobody has been here yet, or all has been forgotten
    number: int = 0  # of the photo, among the session's
    region: Mask | None = None
    corner: tuple[float, float] | None = None  # the first of a box, in percent, until the second is there
    embedding: Any = None  # SAM's, of the photo
    tool: str = ""
    labels: str = ""  # as typed
    looks: bool = False  # whether the attention is shown
    choice: int = 0  # the latest turn at choosing a picture
    turn: int = 0  # the latest at marking
    _chosen: float = 0  # when, on the visitor's clock
    _marked: float = 0
    _set: float = 0

    def begin_choice(self, clock: float, number: int, tool: str, labels: str, looks: bool) -> int | None:
        """The turn, which is over once `choice` is another; None: what was chosen later came first."""
        self.hear(clock, number, tool, labels, looks)
        if clock < self._chosen:
            return None
        self._chosen = clock
        self.choice += 1
        return self.choice

    def begin_mark(self, clock: float, number: int, tool: str, labels: str, looks: bool) -> int | None:
        """The turn, which is over once `turn` is another; None: on another picture, or a later mark came first."""
        self.hear(clock, number, tool, labels, looks)
        if clock < self._marked or number != self.number:
            return None
        self._marked = clock
        self.turn += 1
        return self.turn

    def hear(self, clock: float, number: int, tool: str, labels: str, looks: bool) -> None:
        """How the page is set, unless that was so before what is known; the picture is of no importance."""
        if clock >= self._set:
            self._set, self.tool, self.labels, self.looks = clock, tool, labels, looks

    def open(self, photo: Photo, region: Mask | None = None) -> None:
        """Another picture, of which nothing else is known; what is being marked is over."""
        self.photo, self.region, self.corner, self.embedding = photo, region, None, None
        self.number += 1
        self.turn += 1
