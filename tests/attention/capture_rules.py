"""The rules under which a CUDA graph may hold the calls of a step, checked without a GPU.

A graph replays its kernels with the addresses that they had when it was captured. So, for what is captured:

    made    memory that is allocated belongs to the graph, which reuses it: nothing but the result may be kept
    used    memory from before is read and written by every replay: it must live as long as the graph does
    read    no value may be read by the host; tensors of the device "meta" have none, so reading raises by itself

Nothing of the package is named here. Kernels and dense libraries do not pass through PyTorch's dispatcher; what
stands in for them tells `note_use` (`note_launches`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

from tests.attention import without_kernels
from tests.attention.without_kernels import META, _place

_OPEN: list[Capture] = []


class Capture:
    """Memory of a device that is made and used inside its `recorded` blocks."""

    def __init__(self, device: torch.device = META) -> None:
        self.device = device
        self._made: dict[int, tuple[StorageWeakRef, str]] = {}
        """By the address of the storage, which stays taken while there is a weak reference: (reference, place)."""
        self._used: dict[int, tuple[StorageWeakRef, str]] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        _OPEN.append(self)
        try:
            with _Recording(self):
                yield
        finally:
            _OPEN.remove(self)

    @property
    def num_made(self) -> int:
        """Allocations."""
        return len(self._made)

    def kept(self) -> list[str]:
        """Where memory was made that is alive, though the caller has dropped the results."""
        gc.collect()
        return sorted({place for reference, place in self._made.values() if not reference.expired()})

    def freed(self) -> list[str]:
        """Where memory from before was used that is gone."""
        gc.collect()
        return sorted({place for reference, place in self._used.values() if reference.expired()})

    def note_use(self, *tensors: Tensor) -> None:
        self._note(self._used, tensors)

    def note_made(self, *tensors: Tensor) -> None:
        self._note(self._made, tensors)

    def _note(self, into: dict[int, tuple[StorageWeakRef, str]], tensors: tuple[Tensor, ...]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            is_known = storage._cdata in self._made or storage._cdata in self._used
            if tensor.device.type == self.device.type and not is_known:
                into[storage._cdata] = StorageWeakRef(storage), _place()


class _Recording(TorchDispatchMode):
    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.capture.note_use(*(each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)))
        out = func(*args, **(kwargs or {}))
        self.capture.note_made(*(each for each in tree_leaves(out) if isinstance(each, Tensor)))
        return out


def note_launches(monkeypatch: pytest.MonkeyPatch, *callables: type) -> None:
    """What calls of these classes are given counts as used; none: kernels and dense libraries, after they have been
    left out (`leave_out_kernels`)."""
    for owner in callables or (GridExecutor, without_kernels.NoDense):
        call = owner.__call__

        def noted(self: Any, *args: Any, _call: Any = call, **kwargs: Any) -> Any:
            given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            for capture in _OPEN:
                capture.note_use(*given)
            return _call(self, *args, **kwargs)

        monkeypatch.setattr(owner, "__call__", noted)
