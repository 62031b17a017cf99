"""The state of one visitor: what was last chosen, marked and typed.

Events come in any order: the browser sends a stroke's pictures before it tells of the stroke, and a click may take
seconds to answer. So each event comes with its time on the visitor's own clock, and with the number of the picture that
was shown then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .marks import Mask
from .viewer import Photo


class Heard(NamedTuple):
    """The values that the page sends with each event, in the order in which gradio passes them."""

    clock: float  # when it was done, in milliseconds on the visitor's clock
    number: int  # of the picture that was shown
    tool: str
    labels: str  # as typed
    looks: bool  # whether the attention is to be shown


@dataclass(eq=False)
class Session:
    """The state of one visitor. The methods take over an event, unless it is older than those taken before."""

    photo: Photo | None = None  # None: the visitor is new, or gradio has forgotten the session
    number: int = 0  # counts the session's photos
    region: Mask | None = None
    corner: tuple[float, float] | None = None  # the first corner of a box, in percent, until the second one is set
    embedding: Any = None  # what SAM made of the photo
    tool: str = ""
    labels: str = ""  # as typed
    looks: bool = False  # whether the attention is to be shown
    choice: int = 0  # counts the choices of a picture
    turn: int = 0  # counts the marks
    _chosen: float = 0  # time of the latest choice, on the visitor's clock
    _marked: float = 0  # time of the latest mark
    _set: float = 0  # time of the latest event

    def begin_choice(self, heard: Heard) -> int | None:
        """Begin to choose a picture. Return the new `choice`, valid until it changes, or None after a later choice."""
        self.hear(heard)
        if heard.clock < self._chosen:
            return None
        self._chosen = heard.clock
        self.choice += 1
        return self.choice

    def begin_mark(self, heard: Heard) -> int | None:
        """Begin a mark. Return the new `turn`, valid until it changes.

        None: the mark was made on another picture, or a later mark came first.
        """
        self.hear(heard)
        if heard.clock < self._marked or heard.number != self.number:
            return None
        self._marked = heard.clock
        self.turn += 1
        return self.turn

    def hear(self, heard: Heard) -> None:
        """Take over tool, labels and `looks`, unless this event is older than the last one taken."""
        if heard.clock >= self._set:
            self._set, _, self.tool, self.labels, self.looks = heard

    def open(self, photo: Photo, region: Mask | None = None) -> None:
        """Take another picture, and end whatever was being marked."""
        self.photo, self.region, self.corner, self.embedding = photo, region, None, None
        self.number += 1
        self.turn += 1
