"""How PyTorch's threads wait for each other on a CPU: decided before PyTorch loads, by what else the cores are doing.

An operation ends when its last thread does. The threads that are done wait in one of two ways:

spinning   ready at once: on idle cores the demo model runs 1.5 times as fast as with sleeping threads. But where
           another program wants the core, a thread spins away the time that the one it waits for needs, and everything
           becomes many times slower
sleeping   the system wakes them, which takes longer than a short operation; other programs do no harm

OpenMP reads the choice once, when it is loaded, from variables (variables.py).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pagedvid.cli.variables import set_value, value_of

CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables of the OpenMP libraries of GCC and LLVM: whoever sets one has chosen."""
LOOK_SECONDS = 0.1
BUSY_CORES = 0.5
"""From so many cores in use by others on, threads sleep."""

_STAT = Path("/proc/stat")
_IDLE, _IO_WAIT = 3, 4
"""Columns of a core's line, after its name."""


def choose_wait_policy() -> None:
    """Lets PyTorch's threads sleep while they wait if others use the cores now, unless the user has chosen.

    Without effect once PyTorch is loaded, and where the system does not say what its cores do: OpenMP then spins.
    """
    if _can_choose() and cores_used_by_others(LOOK_SECONDS) >= BUSY_CORES:
        set_value("OMP_WAIT_POLICY", "PASSIVE")


def let_threads_sleep() -> None:
    """The same whatever the cores do now: for a program whose own other threads want them at any moment."""
    if _can_choose():
        set_value("OMP_WAIT_POLICY", "PASSIVE")


def _can_choose() -> bool:
    return "torch" not in sys.modules and all(value_of(name) is None for name in CHOSEN_BY_USER)


def cores_used_by_others(seconds: float) -> float:
    """How many of the cores that this process may use are busy with something else, on average over a look at them.

    0 where the system does not say (outside Linux).
    """
    started, before, own = time.perf_counter(), _busy_ticks(), time.process_time()
    if before is None:
        return 0.0
    time.sleep(seconds)
    after, own = _busy_ticks(), time.process_time() - own
    if after is None:
        return 0.0
    used = (after - before) / os.sysconf("SC_CLK_TCK") - own
    return max(0.0, used / (time.perf_counter() - started))


def usable_cores() -> set[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _busy_ticks() -> int | None:
    """Clock ticks that this process's cores have not been idle, since the system started."""
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines() if line.startswith("cpu")]
        usable = {f"cpu{number}" for number in usable_cores()}
        counts = [[int(count) for count in line[1:9]] for line in lines if line[0] in usable]
    except (OSError, ValueError):
        return None
    return sum(sum(count) - count[_IDLE] - count[_IO_WAIT] for count in counts) if counts else None
