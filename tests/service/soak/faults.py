"""Faults that strike on purpose: in the model, in the allocator, in the engine itself, when it is built, on the disk.

Faults of one video strike victims only, so that all others must come out as if nothing had happened. What breaks the
engine strikes while it works on a victim, and concerns everybody.
"""

from __future__ import annotations

import errno
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pagedvid.errors import IntegrityError

FIRST_SAFE_PROMPT = 1000
"""Prompts are numbers; videos with smaller ones are victims."""

OF_MODEL: dict[str, Callable[[], Exception]] = {
    "model": lambda: FloatingPointError("the model broke on purpose"),
    "allocation": lambda: torch.OutOfMemoryError("out of memory on purpose"),
    "host allocation": lambda: MemoryError("no host memory on purpose"),
    "integrity": lambda: IntegrityError("the bookkeeping is said to be wrong on purpose"),
    "device": lambda: RuntimeError("CUDA error: an illegal memory access on purpose"),
}
"""What is raised inside an attention layer."""
OF_DISK = ("chunk", "checkpoint")
"""The disk is full when one of these is written."""
BREAKING = ("integrity", "device")
KINDS = (*OF_MODEL, *OF_DISK, "build")
MOST_CALLS_BEFORE = 40
NUM_LAYERS = 2


@dataclass
class Fault:
    """One fault that has not struck yet."""

    kind: str
    layer: int = 0
    calls_before: int = 0
    """Calls of this layer, or writes, that still go well."""


class Faults:
    """May be armed from any thread; strikes where the service calls `strike_...`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: dict[str, Fault] = {}
        self.struck: Counter[str] = Counter()
        self.victims: set[str] = set()
        """Ids of sessions whose files may meet a full disk."""

    def arm(self, kind: str, randomness: random.Random) -> None:
        """One more fault of this kind, at a random layer and step, unless one waits already."""
        fault = Fault(kind, randomness.randrange(NUM_LAYERS), randomness.randrange(MOST_CALLS_BEFORE))
        if kind not in OF_MODEL:
            fault.calls_before = randomness.randrange(3)
        with self._lock:
            self._armed.setdefault(kind, fault)

    def disarm(self) -> None:
        """No fault waits any more."""
        with self._lock:
            self._armed.clear()

    def strike_layer(self, phase: float, layer: int) -> None:
        """Before an attention layer of a video with this prompt. Raises the fault that is due."""
        if phase >= FIRST_SAFE_PROMPT:
            return
        for kind, make_error in OF_MODEL.items():
            if self._is_due(kind, layer):
                raise make_error()

    def strike_build(self) -> None:
        """Before an engine is built."""
        if self._is_due("build"):
            raise MemoryError("no memory for an engine on purpose")

    def strike_disk(self, kind: str, id: str, write: Callable[[], Any]) -> None:
        """Before something of a session is written. `write`: the part that still fits on the disk."""
        if id in self.victims and self._is_due(kind):
            write()
            raise OSError(errno.ENOSPC, "no space left on device, on purpose")

    def _is_due(self, kind: str, layer: int | None = None) -> bool:
        with self._lock:
            fault = self._armed.get(kind)
            if fault is None or (layer is not None and layer != fault.layer):
                return False
            fault.calls_before -= 1
            if fault.calls_before >= 0:
                return False
            del self._armed[kind]
            self.struck[kind] += 1
            return True
