"""Who may start, and which jobs run in the next forward. Needs no PyTorch.

Every job is always at some round of its schedule, and its cost is the tokens of that round's ranges. So continuous
batching is a choice of jobs in an order, up to a token budget. A policy is nothing but a sort key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Schedulable(Protocol):
    """What the scheduler reads of a running job."""

    number: int
    """Order of arrival."""
    last_step: int
    """The engine step in which it last ran, -1 for never."""

    @property
    def num_tokens(self) -> int:
        """What it adds to a forward, all ranges together."""
        ...


AnyJob = TypeVar("AnyJob", bound=Schedulable)

POLICIES: dict[str, Callable[[Schedulable], tuple[int, ...]]] = {
    "fcfs": lambda job: (job.number,),
    "round_robin": lambda job: (job.last_step, job.number),
}
"""fcfs: the oldest videos finish first. round_robin: whoever waited longest runs, all videos advance alike."""


def admit_in_order(waiting: deque[Item], can_start: Callable[[Item], bool]) -> Iterator[Item]:
    """Takes from the left what can start, in order of arrival; the first that cannot waits, and so do all behind it.

    This is the rule of admission of the engine and of simulations of it. The caller starts each item before it asks for
    the next, so that `can_start` counts what was taken.
    """
    while waiting and can_start(waiting[0]):
        yield waiting.popleft()


def next_batch(jobs: Iterable[AnyJob], policy: str, max_batch_tokens: int) -> list[AnyJob]:
    """The jobs to run, in policy order, while they fit in the budget; at least one if there is any."""
    chosen: list[AnyJob] = []
    num_tokens = 0
    for job in sorted(jobs, key=POLICIES[policy]):
        if chosen and num_tokens + job.num_tokens > max_batch_tokens:
            break
        chosen.append(job)
        num_tokens += job.num_tokens
    return chosen
