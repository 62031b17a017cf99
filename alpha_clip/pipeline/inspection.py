"""Write one page that shows a run's output: random samples with their masks, and the report's counts and histograms."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import atomic
from ..training.pictures import BadSample, Picture, RegionShards

PAGE = "inspect.html"

_SIDE = 240  # pixels: the longest side of a picture on the page
_COLOURS = ((230, 60, 60), (40, 120, 230), (30, 160, 70), (235, 150, 20), (150, 70, 200), (20, 170, 170))
_STYLE = """
body { font: 15px/1.4 sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0 } td { padding: .1em 1em .1em 0 } td.n { text-align: right }
.all { display: flex; flex-wrap: wrap; gap: 1.5em } figure { margin: 0; max-width: 240px }
img { border: 1px solid #ccc; min-width: 60px }
figcaption { font-size: 13px } b { font-weight: 600 } svg rect { fill: #4a7dbd } svg text { font-size: 10px }
"""


def inspect(folder: Path, samples: int = 24, seed: int = 0) -> Path:
    """Write `inspect.html` into the output folder of a finished annotate-... run, and return its path.

    Raises:
        FileNotFoundError: there is no report, or no shard: the run has not ended.
        ValueError: `samples` is negative.
    """
    if samples < 0:
        raise ValueError(f"samples is {samples}, expected at least 0")
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"{folder} holds no report.json: run annotate-grounding to its end first")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    data = RegionShards(folder)
    chosen = np.random.default_rng(seed).permutation(len(data))[:samples]
    parts = [
        f"<h1>{escape(str(folder.resolve().name))}</h1>",
        f"<p>{report['shards']} shards; {escape(', '.join(report['models']))}</p>",
        *(_table(kind, report[kind]) for kind in ("pictures", "regions")),
        f"<p>{escape(_notes(report))}</p>",
        "<div class=all>",
        *(_histogram(name, one) for name, one in report["histograms"].items()),
        f"</div><h2>{len(chosen)} of {len(data)} samples</h2><div class=all>",
        *(_shown(data, number) for number in chosen.tolist()),
        "</div>",
    ]
    head = f"<!doctype html><meta charset=utf-8><title>{escape(folder.resolve().name)}</title><style>{_STYLE}</style>"
    page = "\n".join([head, *parts]) + "\n"
    text = page.encode("utf-8", "backslashreplace").decode()  # a name may not be in UTF-8
    atomic.write_text(folder / PAGE, text)
    return folder / PAGE


def _notes(report: Mapping[str, Any]) -> str:
    alike = "{:,} of the pictures written are like an earlier one in look and caption.".format(report["duplicates"])
    return f"rejects.jsonl says why something was rejected. {alike}"


def _table(kind: str, counts: Mapping[str, int]) -> str:
    rows = (f"<tr><td>{escape(name)}<td class=n>{count:,}" for name, count in counts.items())
    return f"<h2>{kind}</h2><table>{''.join(rows)}</table>"


def _histogram(name: str, one: Mapping[str, Any]) -> str:
    """A histogram as bars in SVG, the highest 80 pixels high."""
    counts, high = one["counts"], max(one["counts"]) or 1
    bars = (
        f"<rect x={12 * i} y={90 - 80 * count / high:.1f} width=11 height={80 * count / high:.1f}>"
        f"<title>{count:,}</title></rect>"
        for i, count in enumerate(counts)
    )
    width = 12 * len(counts)
    axis = f"<text x=0 y=103>{one['low']:g}</text><text x={width} y=103 text-anchor=end>{one['high']:g}</text>"
    drawing = f"<svg width={width} height=106>{''.join(bars)}{axis}</svg>"
    return f"<figure><figcaption>{escape(name)}</figcaption>{drawing}</figure>"


def _shown(data: RegionShards, number: int) -> str:
    try:
        picture = data[number]
    except BadSample as error:
        return f"<figure><figcaption>{escape(str(error))}</figcaption></figure>"
    jpg = io.BytesIO()
    drawn(picture).save(jpg, "JPEG", quality=85)
    source = base64.b64encode(jpg.getvalue()).decode("ascii")
    phrases = (
        f"<br><b style='color:rgb{_colour(i)}'>{escape(region.phrase)}</b>"
        + ("" if region.score is None else f" {region.score:.2f}")
        for i, region in enumerate(picture.regions)
    )
    text = f"{escape(picture.key)}: {escape(picture.caption or '')}{''.join(phrases)}"
    return f"<figure><img src='data:image/jpeg;base64,{source}' alt=''><figcaption>{text}</figcaption></figure>"


def _colour(number: int) -> tuple[int, int, int]:
    return _COLOURS[number % len(_COLOURS)]


def drawn(picture: Picture) -> Image.Image:
    """The picture, scaled down, with each mask laid over it in a half-transparent colour."""
    small = picture.image.copy()
    small.thumbnail((_SIDE, _SIDE))
    pixels: NDArray[np.floating[Any]] = np.asarray(small, np.float32)
    for number, region in enumerate(picture.regions):
        mask = Image.fromarray((255 * region.mask).astype(np.uint8)).resize(small.size, Image.Resampling.BOX)
        share = np.asarray(mask, np.float32)[..., None] / 510
        pixels = pixels * (1 - share) + np.array(_colour(number), np.float32) * share
    return Image.fromarray(pixels.round().astype(np.uint8))
