"""Which jobs run in the next forward. Plain ids and counts, no tensors.

Every job is always at some step of some chunk and its cost is the tokens of one chunk (times branches), so continuous
batching is a choice of jobs in an order, up to a token budget. A policy is nothing but a sort key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """What the scheduler knows of a running job."""

    number: int
    """Order of arrival."""
    last_step: int
    """The engine step in which it last ran, -1 for never."""
    num_tokens: int
    """What it adds to a forward, all branches together."""


POLICIES: dict[str, Callable[[Candidate], tuple[int, ...]]] = {
    "fcfs": lambda candidate: (candidate.number,),
    "round_robin": lambda candidate: (candidate.last_step, candidate.number),
}
"""fcfs: the oldest videos finish first. round_robin: whoever waited longest runs, all videos advance alike."""


def next_batch(candidates: Iterable[Candidate], policy: str, max_batch_tokens: int) -> tuple[int, ...]:
    """Numbers of the jobs to run, in policy order, while they fit in the budget; at least one if there is any."""
    chosen: list[int] = []
    num_tokens = 0
    for candidate in sorted(candidates, key=POLICIES[policy]):
        if chosen and num_tokens + candidate.num_tokens > max_batch_tokens:
            break
        chosen.append(candidate.number)
        num_tokens += candidate.num_tokens
    return tuple(chosen)
