"""Who may start, and which jobs run in the next forward. Needs no PyTorch.

Every job is always at some round of its schedule, and its cost is the tokens of that round's ranges. So continuous
batching is a choice of jobs in an order, up to a token budget. A policy is nothing but a sort key. The first number of
a key is a class: jobs of different classes do not share a forward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")

MOST_WAITED_STEPS = 256
"""Under `priority` and `deadline`, a job left out of this many steps in a row goes first. A larger number leaves more
steps to the jobs that the policy prefers: J others take at most J / MOST_WAITED_STEPS of these steps."""
STARTED_SECONDS = 0.5
"""Under `deadline`, a started chunk is finished first unless another viewer has less credit by more than this."""
URGENT_SECONDS = 2.0
"""Under `deadline`, viewers with less credit than this have their forwards to themselves: whoever rides along makes a
forward longer, and a budget that holds all jobs would give all of them equal shares."""
FAR_AHEAD_SECONDS = 8.0
"""Under `deadline`, a video whose viewer has more credit than this runs only when nobody else wants the device."""


LIVE_ADMISSION = ("measured", "all")
"""measured: a live video is refused when the measured time of a token says that others would stall. all: never."""


class Schedulable(Protocol):
    """What the scheduler reads of a job that could run."""

    number: int
    """Order of arrival."""
    waited_steps: int
    """Steps in a row that went by without it since it last ran or became able to run; `count_waits` counts them."""

    @property
    def num_tokens(self) -> int:
        """What it adds to a forward, all ranges together."""
        ...

    @property
    def priority(self) -> int:
        """Higher ones are preferred, where the policy asks for it."""
        ...

    @property
    def is_mid_chunk(self) -> bool:
        """Whether its next round works on a chunk that earlier rounds have begun."""
        ...

    @property
    def credit_seconds(self) -> float | None:
        """How long its viewer can play on with what was delivered, see `Playout`. None: nobody waits for it."""
        ...


AnyJob = TypeVar("AnyJob", bound=Schedulable)
SortKey = tuple[float, ...]


def _by_priority(job: Schedulable) -> SortKey:
    return (0, _overdue(job), -job.priority, job.number)


def _by_deadline(job: Schedulable) -> SortKey:
    """Viewers by credit, then throughput jobs, then viewers that are far ahead."""
    overdue, credit = _overdue(job), job.credit_seconds
    own_class = 0 if overdue else 1
    if credit is None:
        return (own_class, overdue, 1, -job.priority, job.number)
    if credit > FAR_AHEAD_SECONDS:
        return (own_class, overdue, 2, credit, job.number)
    due_seconds = credit - STARTED_SECONDS * job.is_mid_chunk
    return (0 if due_seconds < URGENT_SECONDS else own_class, overdue, 0, due_seconds, job.number)


def _overdue(job: Schedulable) -> int:
    """0; negative for a job that has waited too long, the more so the longer."""
    return min(0, MOST_WAITED_STEPS - 1 - job.waited_steps)


POLICIES: dict[str, Callable[[Schedulable], SortKey]] = {
    "fcfs": lambda job: (0, job.number),
    "round_robin": lambda job: (0, -job.waited_steps, job.number),
    "priority": _by_priority,
    "deadline": _by_deadline,
}
"""fcfs: the oldest videos finish first. round_robin: whoever waited longest runs, all videos advance alike. priority:
the highest priority first, then the oldest. deadline: whoever will stall first runs first; videos that nobody watches
take what is left, by priority and age, and share forwards with viewers while none of these is in need.

Nobody starves: of J jobs that can run, none is left out of more than J - 1 steps in a row under round_robin, and of
more than MOST_WAITED_STEPS + J - 1 under priority and deadline, because only jobs that have waited at least as long go
before an overdue one. Under fcfs a job waits until the older ones have ended.
"""


def admit_in_order(waiting: deque[Item], can_start: Callable[[Item], bool]) -> Iterator[Item]:
    """Takes from the left what can start, in order of arrival, up to the first item that cannot.

    This is the rule of admission of the engine and of simulations of it. The caller starts each item before it asks for
    the next, so that `can_start` counts what was taken.
    """
    while waiting and can_start(waiting[0]):
        yield waiting.popleft()


def next_batch(jobs: Iterable[AnyJob], policy: str, max_batch_tokens: int) -> list[AnyJob]:
    """The jobs to run, in policy order, while they are of the first one's class and fit in the budget; at least one if
    there is any."""
    sort_key = POLICIES[policy]
    chosen: list[AnyJob] = []
    num_tokens = 0
    for job in sorted(jobs, key=sort_key):
        is_apart = chosen and sort_key(job)[0] != sort_key(chosen[0])[0]
        if is_apart or (chosen and num_tokens + job.num_tokens > max_batch_tokens):
            break
        chosen.append(job)
        num_tokens += job.num_tokens
    return chosen


def count_waits(jobs: Iterable[AnyJob], batch: Collection[AnyJob]) -> None:
    """Updates `waited_steps` of the jobs from which `batch` was chosen."""
    for job in jobs:
        job.waited_steps += 1
    for job in batch:
        job.waited_steps = 0
