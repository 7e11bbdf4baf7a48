"""The kernels' backend without a GPU: on the device "meta", with kernels and dense libraries left out.

Tensors of that device have no contents, so whatever reads them raises, and so does an operation that mixes them with
tensors of the CPU. What PyTorch moves to the device silently is noted (`Copies`): from memory that is not pinned,
a GPU waits for it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

import pagedvid
from pagedvid.attention import backend, commit_correction
from pagedvid.attention.store import LayerStore
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.triton_scenes import with_kernels

META = torch.device("meta")
PACKAGE = Path(pagedvid.__file__).parent
FROM_NUMBERS = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


class NoDense:
    """A dense library that only knows shapes."""

    name = "none"
    head_major = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        assert q.is_meta and k.is_meta and v.is_meta
        return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


def leave_out_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch only checks that its tensors are on the device; the waits of a commit pass, in its last layer, are left
    out too: every chunk is cut into two runs of pages. pagedvid keeps its host's function modes out (host_state.py);
    those of `Copies` are to see it work."""

    def launch(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        assert tensors and all(tensor.is_meta for tensor in tensors), "a kernel is given a tensor of the CPU"

    monkeypatch.setattr(GridExecutor, "__call__", launch)
    monkeypatch.setattr(backend, "choose_provider", lambda *_: NoDense())
    monkeypatch.setattr(torch._C, "DisableTorchFunction", nullcontext)
    monkeypatch.setattr(LayerStore, "_require_storable", lambda *_: None)
    monkeypatch.setattr(commit_correction, "runs_of_layers", two_runs)


def two_runs(noted: Sequence[tuple[int, int, Tensor]], num_tokens: int) -> dict[int, tuple[int, ...]]:
    """In place of `runs_of_layers`: the first page, and the rest."""
    return {layer: (page_tokens, num_tokens - page_tokens) for layer, page_tokens, _ in noted}


def on_meta(cache: PagedKVCache) -> PagedKVCache:
    """The cache with its pool on the device, read and written by kernels."""
    cache.pool.records = cache.pool.records.to(META)
    return with_kernels(cache)


class Copies:
    """What goes from one device to the other inside its `noted` blocks, by the function of pagedvid that does it."""

    def __init__(self) -> None:
        self.by_place: Counter[str] = Counter()

    @contextmanager
    def noted(self) -> Iterator[None]:
        with _OfNumbers(self), _OfTensors(self):
            yield

    def note(self) -> None:
        self.by_place[_place()] += 1


class _OfTensors(TorchDispatchMode):
    """Copies of tensors, and indices on the CPU."""

    def __init__(self, copies: Copies) -> None:
        super().__init__()
        self.copies = copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if func is torch.ops.aten._to_copy.default:
            given.append(out)
        # A number on the CPU is an argument of the kernel that reads it.
        is_number = func is not torch.ops.aten.copy_.default and any(x.ndim == 0 and not x.is_meta for x in given)
        if len({x.device for x in given}) > 1 and not is_number:
            self.copies.note()
        return out


class _OfNumbers(TorchFunctionMode):
    """Tensors on the device that are made of Python's numbers, which the other mode does not get to see."""

    def __init__(self, copies: Copies) -> None:
        super().__init__()
        self.copies = copies

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in FROM_NUMBERS:
            brings = out.is_meta and not isinstance(args[-1], Tensor)
        else:
            brings = func in INDEXING and args[0].is_meta and _has_list(args[1])
        if brings:
            self.copies.note()
        return out


def _has_list(index: Any) -> bool:
    return any(isinstance(each, Sequence) for each in (index if isinstance(index, tuple) else (index,)))


def _place() -> str:
    """The innermost function of pagedvid that is running: "models/demo/pipeline.py DemoModel.forward"."""
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE)} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "outside of pagedvid"
