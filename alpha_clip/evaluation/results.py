"""A run as files: results.json, which holds all of it, and results.md."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .records import write_whole
from .run import Run

PACKAGES = ("alpha-clip", "torch", "torchvision", "pillow", "numpy")


def write(found: Run, folder: Path, command: Sequence[str]) -> None:
    """Write results.json and results.md into `folder`, each under a temporary name first."""
    write_whole(folder / "results.json", json.dumps(contents(found, command)) + "\n")
    write_whole(folder / "results.md", markdown(found, command))


def contents(found: Run, command: Sequence[str]) -> dict[str, Any]:
    """All of a run as JSON can hold it."""
    return {
        "task": found.task.name,
        "columns": [asdict(column) for column in found.task.columns],
        "identity": found.identity,
        "made": made(command),
        "tables": [asdict(table) for table in tables(found)],
        "notes": list(found.task.notes),
        "findings": [asdict(finding) for finding in found.findings],
        "unusable": found.unusable,
        "records": [asdict(record) for record in found.records],
    }


def made(command: Sequence[str]) -> Mapping[str, Any]:
    """With what, when, and by which command."""
    return {
        "command": list(command),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def tables(found: Run) -> list[Any]:
    return [found.table(), found.differences()]


def markdown(found: Run, command: Sequence[str]) -> str:
    parts = [table.markdown() for table in tables(found)] + [finding.markdown() for finding in found.findings]
    parts += found.task.notes
    if found.unusable:
        parts.append(
            f"{len(found.unusable)} samples could not be used; the first: {next(iter(found.unusable.values()))}"
        )
    return "\n\n".join([f"# {found.task.name}", f"`{' '.join(command)}`", *parts]) + "\n"
