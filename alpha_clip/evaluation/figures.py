"""Draw the figures of a report for light and for dark pages, as SVG in data URIs."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .metrics import Estimate
from .tables import Curves

MARKERS = "osD^vP"
_LONGEST = 30  # characters of a label
_INCH = 96  # CSS pixels


# Each colour, and its counterpart on a dark page. The series are Okabe and Ito's, safe for the colour-blind.
TEXT, GRID, PAGE = "#1d1d1f", "#d8d8dc", "#ffffff"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DARK = {TEXT: "#e8e8ea", GRID: "#47474d", PAGE: "#17171a"} | dict(
    zip(SERIES, ("#57b4e9", "#ff8a3d", "#2cc295", "#e59bc4", "#f0e442", "#a9c4ff"), strict=True)
)


@dataclass(frozen=True)
class Drawing:
    """A figure for an `img` element."""

    title: str
    light: str  # data URIs
    dark: str
    width: int  # CSS pixels
    height: int
    alt: str


@dataclass(frozen=True)
class Dot:
    """A row of a forest plot: an estimate, filled if nothing is significantly better."""

    group: str  # heading; consecutive rows with the same one stand under it together
    name: str
    estimate: Estimate | None
    filled: bool = True


def forest(title: str, dots: Sequence[Dot], alt: str, span: float | None = None) -> Drawing:
    """Draw dots with intervals, one row each: shares from 0 to 100%, or differences from -`span` to `span`."""
    rows, places = _rows(dots)
    size = (3.9, 0.75 + 0.2 * len(rows))

    def draw(axes: Axes) -> None:
        _draw_dots(axes, dots, places)
        if span is not None:
            axes.axvline(0, color=TEXT, linewidth=0.8)
            axes.set_xlim(-105 * span, 105 * span)
        else:
            axes.set_xlim(-3, 103)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [_shortened(label) for label, _ in rows])
        for tick, (_, heading) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if heading else "normal")
        axes.set_xlabel("%" if span is None else "percentage points")
        axes.grid(axis="x", color=GRID, linewidth=0.6)

    return _drawn(title, size, draw, alt)


def curves(found: Curves) -> Drawing:
    """Draw lines through points, with a band around estimates."""
    size = (5.2, 3.2 + 0.2 * math.ceil(len(found.lines) / 2))

    def draw(axes: Axes) -> None:
        handles = []
        for i, points in enumerate(found.lines.values()):
            color, style = SERIES[i % len(SERIES)], ("-", "--", ":")[i // len(SERIES) % 3]
            x = [point[0] for point in points]
            y = [p.value if isinstance(p, Estimate) else p for _, p in points]
            marker = MARKERS[i % len(MARKERS)]
            handles += axes.plot(x, y, style, color=color, marker=marker, markersize=4, linewidth=1.4)
            band = [(x, p.low, p.high) for x, p in points if isinstance(p, Estimate)]
            if band:
                at, low, high = zip(*band, strict=True)
                axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_xlabel(found.x_label)
        axes.set_ylabel(found.y_label)
        axes.grid(color=GRID, linewidth=0.6)
        if handles:
            names = [_shortened(name) for name in found.lines]
            box = axes.figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
            for text in box.get_texts():
                text.set_color(TEXT)

    named = ", ".join(found.lines)
    return _drawn(found.title, size, draw, f"{found.y_label} against {found.x_label}, lines: {named}.")


def _rows(dots: Sequence[Dot]) -> tuple[list[tuple[str, bool]], list[int]]:
    """Labels from top to bottom, which of them are headings, and the row of each dot."""
    rows: list[tuple[str, bool]] = []
    places, last = [], ""
    for dot in dots:
        if dot.group != last:
            rows.append((dot.group, True))
            last = dot.group
        places.append(len(rows))
        rows.append((dot.name, False))
    return rows, places


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _draw_dots(axes: Axes, dots: Sequence[Dot], places: Sequence[int]) -> None:
    """Draw each group in its own colour, with its intervals."""
    groups = list(dict.fromkeys(dot.group for dot in dots))
    alike: dict[tuple[str, bool], list[tuple[int, Estimate]]] = {}
    for dot, y in zip(dots, places, strict=True):
        if dot.estimate is not None:
            alike.setdefault((dot.group, dot.filled), []).append((y, dot.estimate))
    for (group, filled), found in alike.items():
        color = SERIES[groups.index(group) % len(SERIES)]
        rows, (x, low, high) = [y for y, _ in found], _percent([e for _, e in found])
        axes.hlines(rows, low, high, colors=color, linewidth=1.4)
        axes.plot(x, rows, "o", color=color, markersize=4.5, markerfacecolor=color if filled else PAGE)


def _percent(found: Sequence[Estimate]) -> tuple[list[float], list[float], list[float]]:
    return [100 * e.value for e in found], [100 * e.low for e in found], [100 * e.high for e in found]


def _drawn(title: str, size: tuple[float, float], draw: Callable[[Axes], None], alt: str) -> Drawing:
    light = _svg(size, draw)
    dark = re.sub("#[0-9a-f]{6}", lambda color: DARK.get(color[0], color[0]), light)
    return Drawing(title, _uri(light), _uri(dark), round(size[0] * _INCH), round(size[1] * _INCH), alt)


def _uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode('ascii')}"


def _svg(size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    # Names come from data, where a dollar sign does not begin a formula. A fixed salt gives equal figures equal files.
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "alpha-clip", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.tick_params(colors=TEXT, length=0, labelsize=8.5)
        axes.xaxis.label.set_color(TEXT)
        axes.yaxis.label.set_color(TEXT)
        axes.set_facecolor("none")
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()
