"""Bytes of tensors: on a CPU from PyTorch's allocation records, on a GPU from its allocator."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def live_bytes(device: torch.device) -> int:
    """Bytes of all tensors of this process on the device; storage shared by several tensors counts once."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    gc.collect()
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        # Other subclasses, such as the fake tensors of torch.compile, have no memory of their own.
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == device.type:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak_extra_bytes(device: torch.device, call: Callable[[], None]) -> int:
    """Most bytes allocated at once during `call` on top of those before it; temporaries inside operators count."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _held_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    records: list[Any] = list(_results(profiler).events())
    changes = sorted((event for event in records if event.name() == "[memory]"), key=lambda event: event.start_ns())
    alive = peak = 0
    for change in changes:
        alive += change.nbytes()
        peak = max(peak, alive)
    return peak


def _results(profiler: Any) -> Any:
    """The profiler's raw records; its own tables lose the order of allocations."""
    return profiler.profiler.kineto_results


def warm_up(device: torch.device) -> None:
    """Lets libraries allocate what they keep: cuBLAS takes its workspace from PyTorch at the first product."""
    if device.type == "cuda":
        square = torch.ones(8, 8, dtype=torch.float32, device=device)
        torch.cuda.synchronize(square.matmul(square).device)


@contextmanager
def _held_stderr() -> Iterator[None]:
    """Holds back the log lines that the profiler's native code writes; they are shown only after an error."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


def available_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    information = Path("/proc/meminfo")
    if not information.is_file():
        return None
    for line in information.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
