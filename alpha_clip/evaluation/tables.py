"""Tables and curves of the results, and tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .metrics import Estimate

Cell = str | Estimate | None


@dataclass(frozen=True)
class Table:
    """Rows of texts and estimates."""

    title: str
    columns: Sequence[str]  # headings; the first is above the names of the rows
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    signed: bool = False  # cells are differences, shown with a sign, and none is the best

    def best(self, column: int) -> Estimate | None:
        """The highest of several estimates in a column; None if there are fewer than two."""
        if self.signed:
            return None
        found = [cell for row in self.rows if isinstance(cell := row[column], Estimate)]
        return max(found, key=lambda estimate: estimate.value) if len(found) > 1 else None

    def markdown(self) -> str:
        """The table in Markdown, with the best of each column in bold."""
        best = [self.best(i) for i in range(len(self.columns))]
        lines = [f"| {' | '.join(self.columns)} |", f"|{'---|' * len(self.columns)}"]
        for row in self.rows:
            cells = [
                _text(cell, cell is not None and cell == top, self.signed) for cell, top in zip(row, best, strict=True)
            ]
            lines.append(f"| {' | '.join(cells)} |")
        note = [f"\n{self.note}"] if self.note else []
        return "\n".join([f"### {self.title}\n", *lines, *note])


@dataclass(frozen=True)
class Curves:
    """Lines through points (x, y), where y may be an Estimate."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float | Estimate]]]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """The answer to one question about a model."""

    name: str  # of the probe
    title: str
    verdict: str  # in words, with the figures behind them
    tables: Sequence[Table] = field(default_factory=list)
    curves: Sequence[Curves] = field(default_factory=list)

    def markdown(self) -> str:
        return "\n\n".join([f"## {self.title}", self.verdict, *(table.markdown() for table in self.tables)])


def _text(cell: Cell, bold: bool, signed: bool) -> str:
    if cell is None:
        return ""
    if signed and isinstance(cell, Estimate):
        return f"{cell.value:+.1%} [{cell.low:+.1%}, {cell.high:+.1%}]"
    return f"**{cell}**" if bold else str(cell)
