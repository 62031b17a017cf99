"""Draw the shares of labels as bars, in HTML that a screen reader can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_GROUPS = {
    "whole": ("The whole picture", "As it is, whatever is marked."),
    "alpha": ("The part you marked", "In its place, with the rest around it."),
    "crop": ("A cut-out of that part", "The box around it and a little more, and nothing else."),
}
_WAITING = "Mark something in the picture to fill this in."


def bars(labels: Sequence[str], shares: Mapping[str, Sequence[float]], note: str = "") -> str:
    """HTML of three groups of bars, below a note: a bar for each label, or what to do where a group has no shares."""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<div class="answers">{said}{"".join(_group(labels, shares, way) for way in _GROUPS)}</div>'


def message(text: str) -> str:
    """A sentence in place of the bars, as HTML."""
    return f'<div class="answers"><p class="note">{escape(text)}</p></div>'


def _group(labels: Sequence[str], shares: Mapping[str, Sequence[float]], way: str) -> str:
    title, about = _GROUPS[way]
    if way not in shares:
        return f'<section class="group {way}"><h3>{title}</h3><p class="waiting">{_WAITING}</p></section>'
    best = max(shares[way])
    rows = "".join(_row(label, share, share == best) for label, share in zip(labels, shares[way], strict=True))
    return f'<section class="group {way}"><h3>{title}</h3><p class="about">{about}</p><ul>{rows}</ul></section>'


def _row(label: str, share: float, best: bool) -> str:
    chosen = ' class="best"' if best else ""
    mark = '<span class="tick" title="fits best">✓</span>' if best else ""
    return (
        f'<li{chosen}><span class="name">{escape(label)}</span>'
        f'<span class="track" aria-hidden="true"><span class="fill" style="width:{100 * share:.1f}%"></span></span>'
        f'<span class="share">{mark}{share:.0%}</span></li>'
    )
