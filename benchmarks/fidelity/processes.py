"""Shares work among processes of one thread each. No result depends on their number."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def shared(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_processes: int,
    start: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
) -> list[Result]:
    """`function` of every item, in order: in this process if `num_processes` is 1, otherwise in new ones.

    `start(*given)` runs first in each process, and leaves there what `function` needs.
    """
    if num_processes == 1:
        if start is not None:
            start(*given)
        return [function(item) for item in items]
    # Forked processes would inherit locks that PyTorch's threads hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, partial(_start, start), given) as pool:
        return list(pool.map(function, items))


def _start(start: Callable[..., None] | None, *given: Any) -> None:
    torch.set_num_threads(1)
    if start is not None:
        start(*given)
