"""Figures of a report, each drawn for light and for dark pages, as SVG in a data URI."""

from __future__ import annotations

import base64
import io
import math
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


@dataclass(frozen=True)
class Theme:
    text: str
    grid: str
    page: str
    series: tuple[str, ...]  # Okabe and Ito's, which the colour-blind tell apart; on dark pages, lighter ones


LIGHT = Theme("#1d1d1f", "#d8d8dc", "#ffffff", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"))
DARK = Theme("#e8e8ea", "#47474d", "#17171a", ("#56B4E9", "#FF8A3D", "#2CC295", "#E59BC4", "#F0E442", "#A9C4FF"))


@dataclass(frozen=True)
class Drawing:
    """One figure, as an `img` can show it."""

    title: str
    light: str  # data URIs
    dark: str
    width: int  # CSS pixels
    height: int
    alt: str


@dataclass(frozen=True)
class Dot:
    """A row of a forest: an estimate, filled if nothing is significantly better."""

    group: str  # rows that follow each other and share it stand under one heading
    name: str
    estimate: Estimate | None
    filled: bool = True


def forest(title: str, dots: Sequence[Dot], alt: str, difference: bool = False) -> Drawing:
    """Dots with intervals, one row each; shares from 0 to 100%, or differences around 0."""
    rows, places = _rows(dots)
    size = (3.9, 0.75 + 0.2 * len(rows))

    def draw(axes: Axes, theme: Theme) -> None:
        groups = list(dict.fromkeys(dot.group for dot in dots))
        for dot, y in zip(dots, places, strict=True):
            if dot.estimate is not None:
                color = theme.series[groups.index(dot.group) % len(theme.series)]
                found = dot.estimate
                axes.plot([100 * found.low, 100 * found.high], [y, y], color=color, linewidth=1.4)
                face = color if dot.filled else theme.page
                axes.plot([100 * found.value], [y], "o", color=color, markersize=4.5, markerfacecolor=face)
        if difference:
            axes.axvline(0, color=theme.text, linewidth=0.8)
        else:
            axes.set_xlim(-3, 103)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [_shortened(label) for label, _ in rows])
        for tick, (_, heading) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if heading else "normal")
        axes.set_xlabel("percentage points" if difference else "%")
        axes.grid(axis="x", color=theme.grid, linewidth=0.6)

    return _drawn(title, size, draw, alt)


def curves(found: Curves) -> Drawing:
    """Lines through points; estimates with a band."""
    size = (5.2, 3.2 + 0.2 * math.ceil(len(found.lines) / 2))

    def draw(axes: Axes, theme: Theme) -> None:
        handles = []
        for i, points in enumerate(found.lines.values()):
            color, style = theme.series[i % len(theme.series)], ("-", "--", ":")[i // len(theme.series) % 3]
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
        axes.grid(color=theme.grid, linewidth=0.6)
        if handles:
            names = [_shortened(name) for name in found.lines]
            box = axes.figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
            for text in box.get_texts():
                text.set_color(theme.text)

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


def _drawn(title: str, size: tuple[float, float], draw: Callable[[Axes, Theme], None], alt: str) -> Drawing:
    light, dark = (_svg(size, draw, theme) for theme in (LIGHT, DARK))
    return Drawing(title, light, dark, round(size[0] * _INCH), round(size[1] * _INCH), alt)


def _svg(size: tuple[float, float], draw: Callable[[Axes, Theme], None], theme: Theme) -> str:
    # Names come from data: a dollar in one is no formula. A fixed salt gives the same file for the same figures.
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "alpha-clip", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, theme)
        axes.tick_params(colors=theme.text, length=0, labelsize=8.5)
        axes.xaxis.label.set_color(theme.text)
        axes.yaxis.label.set_color(theme.text)
        axes.set_facecolor("none")
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(theme.grid)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
