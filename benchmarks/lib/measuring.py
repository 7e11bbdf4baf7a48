"""Time and memory of calls, on CPUs and GPUs."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

KIB = 1024
Case = TypeVar("Case", bound=Hashable)
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise every run of the profiler writes two lines to stderr


def interleaved(cases: Mapping[Case, Callable[[], float]], num_rounds: int) -> dict[Case, list[float]]:
    """Measurements by case. Every round runs all cases once, so that a disturbance of the machine hits all of them."""
    results: dict[Case, list[float]] = {case: [] for case in cases}
    for number in range(num_rounds):
        print(f"round {number + 1} of {num_rounds}", file=sys.stderr, flush=True)
        for case, measure in cases.items():
            results[case].append(measure())
    return results


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median over the rounds of the ratio within each round."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def seconds_of(call: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def seconds_on(device: torch.device, call: Callable[[], Any]) -> float:
    """Time of one call: between two events on a GPU, by the clock on a CPU."""
    if device.type != "cuda":
        return seconds_of(call)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def workspace_bytes(device: torch.device, call: Callable[[], Tensor]) -> int | None:
    """Peak of GPU memory during a call, less what was allocated before and the result; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before - result.untyped_storage().nbytes()


def extra_bytes(call: Callable[[], Tensor]) -> int:
    """Peak of the CPU memory that PyTorch allocates during `call`, less what was allocated before and the result.

    Every tensor counts while it lives, temporaries inside operators included. The result is recognized by its address.
    Buffers that a matrix library allocates for itself are not seen.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [event["args"] for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return _peak_without(events, result.untyped_storage().data_ptr(), result.untyped_storage().nbytes())


def _peak_without(events: list[dict[str, int]], address: int, num_bytes: int) -> int:
    """Highest total of the allocator, less `num_bytes` from the last allocation at `address` on."""
    events = sorted(events, key=lambda event: event["Ev Idx"])
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    own = max(i for i, event in enumerate(events) if event["Addr"] == address and event["Bytes"] > 0)
    return max(event["Total Allocated"] - (num_bytes if i >= own else 0) for i, event in enumerate(events)) - before


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int:
    """Most memory that this process has had in RAM. Unlike `ru_maxrss`, it does not start at the parent's peak."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * KIB
    raise OSError(f"/proc/self/status has no {field}: resident memory can be measured on Linux only")
