"""Memory as benchmarks count it: live tensors inside a call, and what the operating system gave the process."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.profiler import ProfilerActivity, profile

KIB = 1024
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write two lines to stderr every time it runs


def extra_bytes(call: Callable[[], Tensor]) -> int:
    """Peak of the bytes that PyTorch's allocator hands out during `call` beyond what it held before, less the result.

    Counts every tensor, temporaries inside operators included, at each moment; the result's own memory is left out by
    its address. Buffers that a matrix library keeps to itself are not seen. Tensors of the CPU only.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [event["args"] for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return _peak_without(events, result.untyped_storage().data_ptr(), result.untyped_storage().nbytes())


def _peak_without(events: list[dict[str, int]], address: int, num_bytes: int) -> int:
    """Highest of the allocator's own totals, less `num_bytes` from the last allocation at `address` on."""
    events = sorted(events, key=lambda event: event["Ev Idx"])
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    own = max(i for i, event in enumerate(events) if event["Addr"] == address and event["Bytes"] > 0)
    return max(event["Total Allocated"] - (num_bytes if i >= own else 0) for i, event in enumerate(events)) - before


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int:
    """Most memory that this process ever had in RAM; unlike `ru_maxrss` it does not start at the parent's peak."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * KIB
    raise OSError(f"/proc/self/status has no {field}; resident memory can be measured on Linux only")
