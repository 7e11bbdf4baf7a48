"""Microseconds of a call: what it computes, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    cpu_us: float
    """Computed by all threads of this process."""
    wall_us: float
    """From its beginning to its end."""


def cost_of(call: Callable[[], Any], repetitions: int, calls_each: int = 1) -> Cost:
    """Medians over the repetitions, of which each makes so many calls. One more at first warms up."""
    call()
    cpu, wall = [], []
    for _ in range(repetitions):
        cpu_began, began = time.process_time(), time.perf_counter()
        for _ in range(calls_each):
            call()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
    return Cost(1e6 * median(cpu) / calls_each, 1e6 * median(wall) / calls_each)
