"""Markdown tables of times, with the ratio to the fastest peer and to the machine's roof."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from .timing import Times

PACKAGES = ("torch", "open_clip_torch", "transformers", "openai-clip", "onnxruntime")


@dataclass(frozen=True)
class Line:
    """One comparison: `ours` against all other ways in `times`."""

    title: str
    times: dict[str, Times]
    ours: str
    target: float | None = None  # how many times as fast as the fastest peer it should be
    roofs: Mapping[str, float] | None = None  # seconds, by kind of matrix product

    def against_fastest(self) -> tuple[float, float]:
        """How many times as fast `ours` is as the fastest other way, by the clock and by processor time."""
        ours = self.times[self.ours].typical
        others = [times.typical for name, times in self.times.items() if name != self.ours]
        return min(t[0] for t in others) / ours[0], min(t[1] for t in others) / ours[1]


def table(line: Line) -> str:
    wall, cpu = line.against_fastest()
    ours, our_cpu = line.times[line.ours].typical
    kinds = f" of the roof, {' / '.join(line.roofs)} |" if line.roofs else ""
    rows = [f"### {line.title}", ""]
    rows.append(f"| way | ms (median, min-max) | {line.ours} is x times as fast | processor ms | x |{kinds}")
    rows.append("|---|---|---|---|---|" + ("---|" if kinds else ""))
    for name, times in line.times.items():
        middle, busy = times.typical
        spread = f"{_ms(middle)}, {_ms(min(times.wall))}-{_ms(max(times.wall))}"
        shares = " / ".join(f"{roof / middle:.0%}" for roof in (line.roofs or {}).values())
        ratios = ("", "") if name == line.ours else (f"{middle / ours:.2f}", f"{busy / our_cpu:.2f}")
        row = f"| {name} | {spread} | {ratios[0]} | {_ms(busy)} | {ratios[1]} |"
        rows.append(f"{row} {shares} |" if kinds else row)
    rows += ["", f"{line.ours} against the fastest other: {wall:.2f}x by the clock, {cpu:.2f}x in processor time."]
    return "\n".join(rows)


def summary(lines: Sequence[Line]) -> str:
    rows = ["| line | by the clock | processor time | aim |", "|---|---|---|---|"]
    for line in lines:
        wall, cpu = line.against_fastest()
        aim = "" if line.target is None else f"{line.target:g}x"
        rows.append(f"| {line.title} | {wall:.2f}x | {cpu:.2f}x | {aim} |")
    return "\n".join(rows)


def machine(threads: int, rounds: int, packages: Sequence[str] = PACKAGES) -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{date.today()}; {processor()}, {threads} threads; {rounds} rounds; {versions}"


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _ms(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"
