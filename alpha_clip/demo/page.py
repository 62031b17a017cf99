"""The page: its events and their handlers.

The state of a session is a `Session` in its `gr.State`; sessions share only the model. Every handler receives the
session, and the five values of `Heard`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

try:
    import gradio as gr
    from gradio.utils import get_upload_folder
except ImportError as error:
    raise ImportError(f'the demo needs {error.name}: pip install "alpha-clip[demo]"') from error

from . import marks, script, style
from .bars import bars, message
from .finder import Finder
from .layout import BOX, MIDDLE, PAINT, Layout, editable
from .marks import Mask
from .pictures import Pictures
from .samples import Sample
from .session import Heard, Session
from .uploads import Refused, decode
from .viewer import Photo, Viewer, read_labels

if TYPE_CHECKING:
    from .clicks import Clicks

_Shown = dict[Any, Any]  # component -> its new value

SESSIONS = 100  # so many sessions keep their pictures in memory at a time


class Page(Layout):
    """The page for a viewer; ``blocks`` is gradio's app.

    Args:
        viewer: the model that answers.
        samples: at least one; the page begins with the first.
        note: a sentence about the model, below the title.
        clicks: SAM, for the tool that takes a click; None: no such tool.
        finder: a folder to search; None: no search.
        megapixels: uploads with more million pixels are refused.
    """

    def __init__(
        self,
        viewer: Viewer,
        samples: Sequence[Sample],
        *,
        note: str = "",
        clicks: Clicks | None = None,
        finder: Finder | None = None,
        megapixels: float = 50,
    ) -> None:
        self._viewer, self._clicks, self._finder, self._megapixels = viewer, clicks, finder, megapixels
        self._samples, self._pictures = samples, Pictures(get_upload_folder())
        first = samples[0]
        self._first, names = self._viewer.photo(first.picture), ", ".join(first.labels)
        with gr.Blocks(title="Point at a part of a picture", analytics_enabled=False) as self.blocks:
            answers = self._answer(self._first, None, names)
            self._lay_out(samples, self._pictures.path(first.picture), answers, note, clicks is not None)
            if finder:
                self._lay_out_search(finder)
            self._listen()

    def launch(self, host: str, port: int | None, max_bytes: int) -> str:
        """Serve the page from threads of its own, and return its address. Port None: the first free one from 7860 on.

        Raises:
            OSError: the port is taken.
        """
        _, url, _ = self.blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=max_bytes,
            state_session_capacity=SESSIONS,
            show_error=True,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            theme=style.THEME,
            css=style.css([sample.picture for sample in self._samples]),
            head=style.HEAD,
            js=script.READY,
            quiet=True,
            prevent_thread_lock=True,
        )
        return url

    # --- events ---

    def _listen(self) -> None:
        told = [self._session, self._clock, self._number, self._tool, self._labels, self._looks]
        said = [self._session, self._answers, self._heat]
        fresh = [self._number, self._editor, self._frame, self._target, *self._sides, *said]
        quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        slow = quick | {"show_progress": "minimal"}
        # With `always_last`, a tap that had to wait would come with the place of the tap before.
        every = {"trigger_mode": "multiple"}

        self.blocks.load(self._enter, told, self._session, **quick)
        for choice, sample in zip(self._choices, self._samples, strict=True):
            choice.click(partial(self._choose, sample), told, [*fresh, self._labels], **slow)
        self._upload.upload(self._take, [self._upload, *told], [self._upload, *fresh], **quick)
        self._again.click(self._restart, told, fresh, **quick)
        held = [self._editor, *self._sides, *told]
        self._tool.change(self._switch, held, [self._frame, self._target, *said], **quick)
        # `change` does not fire on strokes.
        self._editor.input(self._painted, [self._editor, *told], said, **quick)
        self._frame.select(self._tapped_corner, told, [*self._sides, self._frame, *said], **quick | every)
        gr.on([s.input for s in self._sides], self._boxed, [*self._sides, *told], [self._frame, *said], **quick)
        if self._clicks:
            self._target.select(self._tapped, told, [*self._point, self._target, *said], **slow | every)
            gr.on([s.input for s in self._point], self._clicked, [*self._point, *told], [self._target, *said], **slow)
        # `input` fires on keys alone.
        self._labels.change(self._typed, told, [self._session, self._answers], **quick)
        self._looks.input(self._ticked, told, [self._session, self._heat], **quick)
        if self._finder:
            gr.on([self._search.click, self._wanted.submit], self._find, self._wanted, self._found, **slow)

    def _enter(self, session: Session, *heard: Any) -> Session:
        if session.photo is None:
            session.hear(Heard(*heard))
            session.open(self._first)
        return session

    # another picture

    def _choose(self, sample: Sample, session: Session, *heard: Any) -> _Shown:
        names = ", ".join(sample.labels)
        shown = self._show(sample.picture, session, *Heard(*heard)._replace(labels=names))
        return {**shown, self._labels: names} if shown else self._nothing(session)

    def _take(self, path: str, session: Session, *heard: Any) -> _Shown:
        try:
            picture = decode(path, self._megapixels)
        except Refused as error:
            gr.Warning(str(error))
            return {self._upload: None}
        return {self._upload: None, **self._show(picture, session, *heard)}

    def _restart(self, session: Session, *heard: Any) -> _Shown:
        return self._show(_known(session).image, session, *heard) or self._nothing(session)

    def _show(self, picture: Image.Image, session: Session, *heard: Any) -> _Shown:
        """Updates that show another picture; empty if a different one was chosen meanwhile."""
        choice = session.begin_choice(Heard(*heard))
        photo = self._viewer.photo(picture)
        if session.choice != choice:
            return {}
        session.open(photo, marks.box(MIDDLE, photo.size) if session.tool == BOX else None)
        path = self._pictures.path(picture)
        fresh = {self._number: session.number, self._editor: editable(path), self._target: path}
        edges = dict(zip(self._sides, MIDDLE, strict=True))
        return {**fresh, **edges, self._frame: self._marked(session), **self._say(session)}

    # another mark

    def _switch(self, editor: Any, x0: float, y0: float, x1: float, y1: float, session: Session, *heard: Any) -> _Shown:
        photo, event = _known(session), Heard(*heard)
        if session.begin_mark(event._replace(number=session.number)) is None:
            return self._nothing(session)
        here = event.number == session.number  # else another picture is on its way
        session.corner = session.region = None
        if session.tool == PAINT and here:
            session.region = marks.strokes(_layers(editor), photo.size)
        elif session.tool == BOX:
            session.region = marks.box((x0, y0, x1, y1) if here else MIDDLE, photo.size)
        target = self._pictures.path(photo.image)
        return {self._frame: self._marked(session), self._target: target, **self._say(session)}

    def _painted(self, editor: Any, session: Session, *heard: Any) -> _Shown:
        photo, event = _known(session), Heard(*heard)
        # The editor sends events when it is hidden, too.
        if event.tool != PAINT or session.begin_mark(event) is None:
            return self._nothing(session)
        session.region = marks.strokes(_layers(editor), photo.size)
        return self._say(session)

    def _tapped_corner(self, event: gr.SelectData, session: Session, *heard: Any) -> _Shown:
        photo = _known(session)
        here = marks.percent(event.index, photo.size)
        if session.corner is None:
            if session.begin_mark(Heard(*heard)) is None:
                return self._nothing(session)
            session.corner = here
            return {self._frame: self._marked(session, here)}
        (x0, x1), (y0, y1) = sorted([session.corner[0], here[0]]), sorted([session.corner[1], here[1]])
        return dict(zip(self._sides, (x0, y0, x1, y1), strict=True)) | self._boxed(x0, y0, x1, y1, session, *heard)

    def _boxed(self, x0: float, y0: float, x1: float, y1: float, session: Session, *heard: Any) -> _Shown:
        photo = _known(session)
        if session.begin_mark(Heard(*heard)) is None:
            return self._nothing(session)
        session.corner = None
        session.region = marks.box((x0, y0, x1, y1), photo.size)
        return {self._frame: self._marked(session), **self._say(session)}

    def _tapped(self, event: gr.SelectData, session: Session, *heard: Any) -> _Shown:
        x, y = marks.percent(event.index, _known(session).size)
        return {self._point[0]: x, self._point[1]: y, **self._clicked(x, y, session, *heard)}

    def _clicked(self, x: float, y: float, session: Session, *heard: Any) -> _Shown:
        assert self._clicks is not None
        photo = _known(session)
        if (turn := session.begin_mark(Heard(*heard))) is None:
            return self._nothing(session)
        embedding = session.embedding
        if embedding is None or embedding[0] is not photo:
            embedding = session.embedding = photo, self._clicks.embed(photo.image)
        region = marks.worth_it(self._clicks.mask(photo.image, embedding[1], marks.pixel((x, y), photo.size)))
        if session.turn != turn:
            return self._nothing(session)
        if region is None:
            gr.Info("Nothing was found at that point: try another one.")
        session.region = region
        return {self._target: self._marked(session, (x, y)), **self._say(session)}

    # answers

    def _typed(self, session: Session, *heard: Any) -> _Shown:
        session.hear(Heard(*heard))
        return self._say(session, heat=False)

    def _ticked(self, session: Session, *heard: Any) -> _Shown:
        session.hear(Heard(*heard))
        return self._say(session, answers=False)

    def _say(self, session: Session, answers: bool = True, heat: bool = True) -> _Shown:
        """Updates for the answers and the heat map, without what a newer event changed while they were computed."""
        photo, region, labels, looks = _known(session), session.region, session.labels, session.looks
        new_answers = self._answer(photo, region, labels) if answers else None
        new_heat = self._look(photo, region, looks) if heat else None
        updates = self._nothing(session)
        if session.photo is photo and session.region is region:
            if answers and session.labels == labels:
                updates[self._answers] = new_answers
            if heat and session.looks == looks:
                updates[self._heat] = new_heat
        return updates

    def _nothing(self, session: Session) -> _Shown:
        """No update but the session itself, which gradio drops an hour after it was last returned."""
        return {self._session: session}

    def _marked(self, session: Session, dot: Sequence[float] | None = None) -> str:
        return self._pictures.path(marks.shown(_known(session).image, session.region, dot))

    def _answer(self, photo: Photo, region: Mask | None, typed: str) -> str:
        try:
            labels = read_labels(typed)
            if not labels:
                return message("Type some names, and see which fits best.")
            shares = self._viewer.shares(photo, region, labels)
        except ValueError as error:
            return message(str(error))
        unread = ", ".join(f"“{word}”" for word in self._viewer.unread(labels))
        return bars(labels, shares, f"This small model has never read {unread}: it can only guess." if unread else "")

    def _look(self, photo: Photo, region: Mask | None, looks: bool) -> Any:
        return gr.Image(self._pictures.path(self._viewer.attention(photo, region)) if looks else None, visible=looks)

    def _find(self, text: str) -> Any:
        assert self._finder is not None
        if not text.strip():
            raise gr.Error("Type what you are looking for.", print_exception=False)
        return gr.Gallery([(self._pictures.path(hit), name) for hit, name in self._finder(text)], visible=True)


def _known(session: Session) -> Photo:
    if session.photo is None:
        raise gr.Error(
            "This page was away for long, or many others came: its picture is gone. Choose one, or send yours again.",
            print_exception=False,
        )
    return session.photo


def _layers(editor: Any) -> Any:
    return editor["layers"] if editor else []
