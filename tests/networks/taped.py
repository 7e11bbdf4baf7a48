"""Graphs for a CPU that behave as CUDA's do: recorded operations run again on the same memory, and only then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Call = tuple[Callable[..., Any], Sequence[Any], dict[str, Any], Any]


class TapedGraph(TorchDispatchMode):
    """`Graph` of networks/cuda_graphs.py. `made` lists all of a test."""

    made: list[TapedGraph] = []  # noqa: RUF012 - emptied by each test

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.num_runs = 0
        self.was_abandoned = False
        TapedGraph.made.append(self)

    def begin(self) -> None:
        self.__enter__()

    def end(self) -> None:
        """What recording computed is destroyed: CUDA would not have computed it."""
        self.__exit__(None, None, None)
        for _, args, kwargs, out in self.calls:
            given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            for x in tree_leaves(out):
                if x.is_floating_point() and x.untyped_storage().data_ptr() not in given:
                    x.fill_(float("nan"))

    def abandon(self) -> None:
        self.__exit__(None, None, None)
        self.was_abandoned = True

    def replay(self) -> None:
        self.num_runs += 1
        for func, args, kwargs, out in self.calls:
            for own, x in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if x.data_ptr() != own.data_ptr():
                    own.copy_(x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out
