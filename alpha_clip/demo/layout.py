"""The components on the page, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from . import marks
from .finder import Finder
from .samples import Sample
from .session import Session

PAINT, BOX, CLICK = "Paint", "Box", "Click"
MIDDLE = (30, 30, 70, 70)  # percent: the box before anyone moves it
_TITLE = """<h1>Point at a part of a picture</h1>
<p>Mark something, and see which of your names fits it best: judged by the whole picture, by the part you marked, and
by a cut-out of that part.</p>{note}"""


class _KeepsNothing(dict[str, Any]):
    """A substitute for `ImageEditor.blob_storage`, in which gradio 6 would leave an unused copy of every stroke."""

    def __setitem__(self, key: str, value: Any) -> None:
        pass


class Layout:
    """Puts gradio's components on the page that is being made."""

    def _lay_out(self, samples: Sequence[Sample], picture: str, answers: str, note: str, clicks: bool) -> None:
        """Lay out all but the search. The page begins with the first sample, whose picture is in the file `picture`."""
        gr.HTML(_TITLE.format(note=f'<p class="model">{escape(note)}</p>' if note else ""))
        self._session = gr.State(Session())
        self._clock = gr.Number(0, visible="hidden", elem_id="clock")  # set by the page's script
        self._number = gr.Number(1, visible="hidden")
        with gr.Row(elem_classes="pictures"):
            self._choices = [
                gr.Button(sample.name, elem_id=f"sample-{i}", elem_classes="sample", min_width=90)
                for i, sample in enumerate(samples)
            ]
            # Not `UploadButton`, which is silent about a file above `max_file_size`.
            self._upload = gr.File(
                label="My own picture", file_types=["image"], min_width=90, height=110, elem_id="upload"
            )
        with gr.Row(elem_classes="desk"):
            with gr.Column(scale=5, min_width=320):
                self._lay_out_tools(picture, clicks)
                with gr.Row(elem_classes="below"):
                    self._looks = gr.Checkbox(label="Show where the model looks", container=False, elem_id="looks")
                    self._again = gr.Button("Start over", size="sm", elem_id="again")
                self._heat = gr.Image(
                    visible=False,
                    label="Bright: where the model looks",
                    alt_text="The picture in grey; what the model looks at is red and yellow",
                    interactive=False,
                    buttons=[],
                    height=430,
                    elem_id="heat",
                )
            with gr.Column(scale=4, min_width=320):
                self._labels = gr.Textbox(
                    ", ".join(samples[0].labels),
                    label="What could it be?",
                    info="Names, with commas between them or one in a line.",
                    lines=2,
                    max_lines=6,
                    elem_id="labels",
                )
                self._answers = gr.HTML(answers, padding=False, elem_id="answers")

    def _lay_out_tools(self, picture: str, clicks: bool) -> None:
        tools = [PAINT, BOX, *([CLICK] if clicks else [])]
        self._tool = gr.Radio(tools, value=PAINT, label="Mark a part of it", elem_id="tool")
        with gr.Column(elem_classes="tool paint"):
            self._editor = gr.ImageEditor(
                editable(picture),
                label="Paint over a part",
                sources=(),  # a file dropped here could fail without a message
                transforms=(),
                layers=False,
                brush=gr.Brush(28, colors=[(marks.COLOUR, 0.5)], color_mode="fixed"),
                eraser=gr.Eraser(28),
                buttons=[],
                height=470,
                elem_id="editor",
            )
            self._editor.blob_storage = _KeepsNothing()
        with gr.Column(elem_classes="tool box"):
            about = "Draw a box, or tap two of its corners, or move its edges below."
            self._frame = _shown(picture, about, "The picture, with the box on it", "frame")
            names = ("Left", "Top", "Right", "Bottom")
            with gr.Row(elem_classes="sliders"):
                self._sides = [_slider(name, at) for name, at in zip(names, MIDDLE, strict=True)]
        with gr.Column(elem_classes="tool click"):
            about = "Tap a thing, or move the point below."
            self._target = _shown(picture, about, "The picture, with what was found at the point", "target")
            with gr.Row(elem_classes="sliders"):
                self._point = [_slider("From left", 50), _slider("From top", 50)]

    def _lay_out_search(self, finder: Finder) -> None:
        about = f"{finder.pictures} pictures in the folder “{finder.folder.name}” on the computer that runs this page."
        gr.HTML(f"<h2>Search this folder</h2><p>{escape(about)}</p>")
        with gr.Row(elem_classes="search"):
            self._wanted = gr.Textbox(
                label="What are you looking for?", placeholder="a boat", scale=4, elem_id="wanted"
            )
            self._search = gr.Button("Search this folder", variant="primary", scale=1, elem_id="search")
        self._found = gr.Gallery(
            label="Found, best first",
            show_label=False,
            columns=4,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            visible=False,
            elem_id="found",
        )


def editable(path: str) -> Any:  # an `EditorValue`
    return {"background": path, "layers": [], "composite": None}


def _shown(picture: str, about: str, alt: str, name: str) -> gr.Image:
    return gr.Image(picture, label=about, alt_text=alt, interactive=False, buttons=[], elem_id=name, height=430)


def _slider(label: str, at: float) -> gr.Slider:
    return gr.Slider(0, 100, at, step=1, label=f"{label} %", buttons=[], min_width=130)
