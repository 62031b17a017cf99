"""The look of the page. Nothing in it comes from another server."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import gradio as gr
from PIL import Image

_THUMBNAIL = 200  # pixels

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")

THEME = gr.themes.Default(primary_hue="rose", neutral_hue="slate", font=_FONTS, font_mono=("ui-monospace", "monospace"))

# With this, the browser itself refuses all other servers. Some of gradio's scripts are inline, or use blobs.
HEAD = """
<meta http-equiv="Content-Security-Policy" content="default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'">
"""


def css(thumbnails: Sequence[Image.Image]) -> str:
    """The page's style, including the pictures of the buttons `#sample-0`, `#sample-1`, ..."""
    return _CSS + "".join(f"#sample-{i}::before {{ {_inside(image)} }}\n" for i, image in enumerate(thumbnails))


def _inside(image: Image.Image) -> str:
    file = io.BytesIO()
    image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS).save(file, "WEBP", quality=85)
    return f"background-image: url(data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()});"


_CSS = """
html, body { background: #fff !important; }
.gradio-container { max-width: 1160px !important; margin: 0 auto !important; }
.gradio-container .prose { color: #1f2430; }
.gradio-container h1 { font-size: 1.8rem; line-height: 1.2; margin: 0.4rem 0 0.3rem; }
.gradio-container h2 { font-size: 1.35rem; margin: 1.2rem 0 0.2rem; }
.gradio-container p { margin: 0.2rem 0; }
.model { color: #4d5568; }

.pictures { display: grid !important; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 0.6rem; }
.sample {
  flex-direction: column; justify-content: flex-end; min-width: 0; padding: 0.35rem;
  font-size: 0.92rem; font-weight: 600; line-height: 1.2; color: #1f2430;
  background: #eef0f4; border: 1px solid #d9dde5; border-radius: 8px;
}
.sample::before {
  content: ""; width: 100%; aspect-ratio: 4 / 3; margin-bottom: 0.35rem;
  background: center / cover #fff; border-radius: 5px;
}
.sample:hover { border-color: #d6204e; }
#upload { min-width: 0 !important; height: auto !important; border-radius: 8px; }
#upload button .wrap { min-height: 0; padding: 1.6rem 0.3rem 0; font-size: 0.82rem; line-height: 1.25; }

/* Hidden here, because gradio would take what it hides out of the page, and the strokes with it. */
.gradio-container:not(:has(#tool input[value="Paint"]:checked)) .paint,
.gradio-container:not(:has(#tool input[value="Box"]:checked)) .box,
.gradio-container:not(:has(#tool input[value="Click"]:checked)) .click { display: none; }

/* There is only one colour; and the other three would remove the picture along with the strokes. */
#editor button:is([aria-label="Color"], [aria-label="Undo"], [aria-label="Redo"], [aria-label="Clear canvas"]),
#editor .top-panel .separator { display: none; }
#editor .top-panel { padding-right: 0.4rem; }
.sliders .head { flex-wrap: nowrap; white-space: nowrap; }
.sliders .head input { width: 3.4rem; }
.sliders .form { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); flex-grow: 1; }
.below { align-items: center; }
#frame img { touch-action: none; cursor: crosshair; }
#found .caption-label { max-width: 100%; white-space: normal; overflow-wrap: anywhere; }
#drawn { position: fixed; z-index: 9; border: 2px solid #d6204e; background: #d6204e40; pointer-events: none; }
#again { flex-grow: 0; min-width: 7rem; }

#answers, #answers .html-container { padding: 0 !important; }
.answers { display: grid; gap: 0.7rem; }
.answers .group { padding: 0.6rem 0.8rem; background: #fff; border: 1px solid #d9dde5; border-radius: 8px; }
.answers h3 { font-size: 1.02rem; margin: 0; }
.answers .about, .answers .waiting { margin: 0 0 0.35rem; color: #4d5568; font-size: 0.88rem; }
.answers ul { display: grid; gap: 0.25rem; margin: 0; padding: 0; list-style: none; }
.answers li {
  display: grid; grid-template-columns: minmax(0, 8.5rem) 1fr 3.9rem; gap: 0.6rem; align-items: center; margin: 0;
}
.answers .name { overflow-wrap: anywhere; line-height: 1.2; }
.answers .track { height: 0.85rem; overflow: hidden; background: #e9ecf1; border-radius: 4px; }
.answers .fill { display: block; height: 100%; min-width: 2px; background: #8a90a0; border-radius: 4px; }
.answers .share { text-align: right; font-variant-numeric: tabular-nums; }
.answers .tick { margin-right: 0.3rem; }
.answers .best { font-weight: 700; }
.answers .whole .best .fill { background: #3b4a6b; }
.answers .alpha .best .fill { background: #d6204e; }
.answers .crop .best .fill { background: #0b7a75; }
.answers .note {
  margin: 0; padding: 0.5rem 0.8rem; background: #fff7e0; border: 1px solid #e5c35c; border-radius: 8px;
}

.gradio-container :is(button, textarea, input[type="range"], input[type="number"], input[type="text"]):focus-visible,
.gradio-container label:has(:focus-visible) { outline: 3px solid #1b5fc1; outline-offset: 1px; }

@media (max-width: 640px) {
  .gradio-container .main { padding-left: 0.6rem !important; padding-right: 0.6rem !important; }
  .gradio-container h1 { font-size: 1.45rem; }
  .pictures { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  #upload { grid-column: 1 / -1; height: 7rem !important; }
  #editor { height: 390px !important; }
  #found .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
  .answers li { grid-template-columns: minmax(0, 6.5rem) 1fr 3.9rem; gap: 0.4rem; }
}
"""
