"""Time several ways to do one thing, in turn."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

Call = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Seconds of each round: by the clock, and processor time of this process and its children."""

    wall: list[float]
    cpu: list[float]

    @property
    def typical(self) -> tuple[float, float]:
        return median(self.wall), median(self.cpu)


def own_cpu() -> float:
    """Processor seconds of all threads of this process and of its children that have ended."""
    t = os.times()
    return time.process_time() + t.children_user + t.children_system


def in_turn(ways: Mapping[str, Call], rounds: int, warm_up: int = 1) -> dict[str, Times]:
    """Time rounds of A B C, A B C, ..., so that a slow spell of the machine slows all; `warm_up` rounds are dropped."""
    times: dict[str, Times] = {name: Times([], []) for name in ways}
    for i in range(warm_up + rounds):
        for name, call in ways.items():
            wall, cpu = time.perf_counter(), own_cpu()
            call()
            wall, cpu = time.perf_counter() - wall, own_cpu() - cpu
            if i >= warm_up:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    return times
