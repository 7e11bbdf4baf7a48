"""Who may start: the one rule of admission, for the engine and for simulations of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def admit_in_order(waiting: deque[Item], can_start: Callable[[Item], bool]) -> Iterator[Item]:
    """Takes from the left what can start, in order of arrival; the first that cannot waits, with all behind it.

    The caller starts each item before it asks for the next, so that `can_start` sees what is taken.
    """
    while waiting and can_start(waiting[0]):
        yield waiting.popleft()
