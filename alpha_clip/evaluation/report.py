"""Render a run, or a comparison of two, as one HTML file that needs no network and no other file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import atomic
from . import compare, figures, gallery, metrics, results
from .compare import Comparison
from .figures import Dot, Drawing
from .metrics import Estimate
from .run import Pair, Run
from .samples import Column
from .tables import Cell, Finding, Table

MINUS = "\N{MINUS SIGN}"
_ROUNDING = 1e-6  # error of a mean over many classes; one question more or less changes it more
_DAMAGED = 20  # unusable samples to list at most


@dataclass(frozen=True)
class Shown:
    """A cell of a table as it is shown."""

    text: str = ""
    interval: str = ""
    mark: str = ""  # "best"; "tied": not significantly worse than the best; "more", "less": a significant difference


@dataclass(frozen=True)
class Grid:
    """A table with its rows under headings."""

    title: str
    columns: Sequence[str]
    groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[Shown]]]]]  # heading, and rows: name, cells
    note: str = ""


def write(run: Run, folder: Path, command: Sequence[str]) -> Path:
    """Write report.html into `folder`."""
    path = folder / "report.html"
    atomic.write_text(path, html(run, command))
    return path


def html(run: Run, command: Sequence[str]) -> str:
    tied = _not_worse(run)
    made = results.made(command)
    models = {key.removeprefix("model "): value for key, value in run.identity.items() if key.startswith("model ")}
    return _rendered(
        "run.html",
        title=f"Evaluation: {run.task.name}",
        asked=results.asked(run) if run.records else "",
        templates=[t for t in run.task.templates if t != "{}"],
        columns=[(column.title, _meaning(column)) for column in run.task.columns] if run.records else [],
        notes=run.task.notes,
        summary=_summary(run, tied) if run.records else None,
        forests=_forests(run, tied) if run.records else [],
        differences=grid(run.differences()) if len(run.ways()) > 1 else None,
        findings=[_finding(finding) for finding in run.findings],
        kinds=gallery.kinds(run),
        top=gallery.TOP,
        each=gallery.EACH,
        made=made,
        facts={"Data": run.identity.get("task", {}), "Models": models},
        unusable=list(run.unusable.items())[:_DAMAGED],
        unusable_count=len(run.unusable),
        reasons=Counter(run.unusable.values()).most_common(5),
    )


def write_comparison(comparison: Comparison, path: Path) -> None:
    atomic.write_text(path, html_of(comparison))


def html_of(comparison: Comparison) -> str:
    """The HTML page of a comparison."""
    ends = [abs(end) for d in comparison.differences.values() if d is not None for end in (d.low, d.high)]
    forests = []
    for column in comparison.columns:
        dots = [
            Dot("", compare.name(a, b), d := comparison.differences[a, column], _significant(d))
            for a, b in comparison.pairs
        ]
        alt = f"Differences in {column.title} with 95% intervals; the figures are in the tables."
        forests.append(figures.forest(column.title, dots, alt, span=max([0.01, *ends])))
    sides = [_side_by_side(comparison.side_by_side(column)) for column in comparison.columns]
    return _rendered(
        "compare.html",
        title=f"{comparison.one.task}: two runs",
        comparison=comparison,
        differences=grid(comparison.table()),
        forests=forests,
        sides=sides,
        facts=compare.facts(comparison),
    )


# --- tables ---


def grid(table: Table) -> Grid:
    """Lay out a table, marking the best share of each column, or the differences that are significant."""
    best = [table.best(i) for i in range(len(table.columns))]
    rows = [
        (str(row[0] or ""), [_cell(cell, top, table.signed) for cell, top in zip(row[1:], best[1:], strict=True)])
        for row in table.rows
    ]
    return Grid(table.title, table.columns, [("", rows)], table.note)


def _summary(run: Run, tied: Mapping[tuple[Column, Pair], str]) -> Grid:
    """The run's own table, with the ways of each model under its name."""
    table = run.table()
    columns = run.task.columns
    groups: dict[str, list[tuple[str, list[Shown]]]] = {}
    several = len({model for model, _ in run.ways()}) > 1
    for pair, row in zip(run.ways(), table.rows, strict=True):
        marks = [tied.get((column, pair), "") for column in columns] + [""] * (len(row) - 1 - len(columns))
        cells = [_shown(cell, mark) for cell, mark in zip(row[1:], marks, strict=True)]
        groups.setdefault(pair[0] if several else "", []).append((pair[1], cells))
    return Grid(table.title, table.columns, list(groups.items()), table.note)


def _side_by_side(table: Table) -> Grid:
    rows = [
        (str(name), [_shown(one, ""), _shown(other, ""), _change(change), *(Shown(str(n)) for n in counts)])
        for name, one, other, change, *counts in table.rows
    ]
    return Grid(table.title, table.columns, [("", rows)])


def _not_worse(run: Run) -> dict[tuple[Column, Pair], str]:
    """Mark the best ways of each column, and those not significantly worse when compared picture by picture."""
    marks: dict[tuple[Column, Pair], str] = {}
    for column in run.task.columns:
        hits = {pair: run.hits(column, *pair) for pair in run.ways()}
        shares = {pair: e.value for pair, of in hits.items() if (e := metrics.estimate(of)) is not None}
        if len(shares) < 2:
            continue
        best = max(shares, key=lambda pair: shares[pair])
        for pair, share in shares.items():
            if share == shares[best]:
                marks[column, pair] = "best"
            elif not _significant(metrics.difference(hits[best], hits[pair])):
                marks[column, pair] = "tied"
    return marks


def _significant(difference: Estimate | None) -> bool:
    """Whether its interval excludes 0, up to rounding."""
    return difference is not None and (difference.low > _ROUNDING or difference.high < -_ROUNDING)


def _cell(cell: Cell, best: Estimate | None, signed: bool) -> Shown:
    if signed:
        return _change(cell)
    is_best = isinstance(cell, Estimate) and best is not None and cell.value == best.value
    return _shown(cell, "best" if is_best else "")


def _shown(cell: Cell, mark: str) -> Shown:
    if isinstance(cell, Estimate):
        return Shown(f"{100 * cell.value:.1f}", f"{100 * cell.low:.1f}\N{EN DASH}{100 * cell.high:.1f}", mark)
    return Shown(cell or "", mark=mark)


def _change(cell: Cell) -> Shown:
    if not isinstance(cell, Estimate):
        return Shown(cell or "")
    mark = ("more" if cell.value > 0 else "less") if _significant(cell) else ""
    value, low, high = (_points(x) for x in (cell.value, cell.low, cell.high))
    return Shown(value, f"{low} to {high}", mark)


def _points(share: float) -> str:
    points = round(100 * share, 1)
    return f"{points:+.1f}".replace("-", MINUS) if points else "0.0"


# --- figures ---


def _forests(run: Run, tied: Mapping[tuple[Column, Pair], str]) -> list[Drawing]:
    several = len({model for model, _ in run.ways()}) > 1
    drawings = []
    for column in run.task.columns:
        estimates = {pair: metrics.estimate(run.hits(column, *pair)) for pair in run.ways()}
        known = {pair: e.value for pair, e in estimates.items() if e is not None}
        if known:
            best = max(known, key=lambda pair: known[pair])
            named = f"the highest is {run.label(best)} with {known[best]:.1%}"
            alt = f"{column.title}: a dot and a 95% interval for each way; {named}. All figures are in the table."
            dots = [Dot(p[0] if several else "", p[1], e, (column, p) in tied) for p, e in estimates.items()]
            drawings.append(figures.forest(column.title, dots, alt))
    return drawings


def _finding(finding: Finding) -> dict[str, Any]:
    tables, drawn = [grid(table) for table in finding.tables], [figures.curves(c) for c in finding.curves]
    notes = [c.note for c in finding.curves]
    return {
        "title": finding.title,
        "verdict": finding.verdict,
        "tables": tables,
        "curves": list(zip(drawn, notes, strict=True)),
    }


# --- words ---


def _meaning(column: Column) -> str:
    of = f"questions of {_listed(column.groups)}" if column.groups else "all questions"
    right = "the right answer first" if column.k == 1 else f"the right answer among the first {column.k}"
    share = f"share of {of} with {right}"
    return f"mean over what is right of its {share}" if column.per_class else share


def _listed(words: Iterable[str]) -> str:
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def _rendered(template: str, **values: Any) -> str:
    pages = Environment(
        loader=PackageLoader("alpha_clip.evaluation", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(template).render(**values)
