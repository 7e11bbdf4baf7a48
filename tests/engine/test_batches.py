"""The scheduler's properties: order, budget, fairness. Pure integers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.engine.scheduler import POLICIES, next_batch


@dataclass(frozen=True)
class Running:
    number: int
    last_step: int
    num_tokens: int


COSTS = st.integers(1, 50)
JOBS = st.lists(st.tuples(st.integers(0, 99), st.integers(-1, 9), COSTS), unique_by=lambda fields: fields[0]).map(
    lambda rows: [Running(*row) for row in rows]
)


@given(JOBS, st.sampled_from(sorted(POLICIES)), st.integers(1, 120))
def test_a_batch_is_within_the_budget_and_as_long_as_possible(jobs, policy, budget):
    batch = next_batch(jobs, policy, budget)
    num_tokens = sum(job.num_tokens for job in batch)
    assert len(set(batch)) == len(batch)
    assert bool(batch) == bool(jobs)
    assert num_tokens <= budget or len(batch) == 1
    left_out = [job for job in jobs if job not in batch]
    if left_out:
        assert num_tokens + max(job.num_tokens for job in left_out) > budget


@given(JOBS, st.integers(1, 120))
def test_fcfs_leaves_out_only_later_arrivals(jobs, budget):
    batch = next_batch(jobs, "fcfs", budget)
    assert batch == sorted(batch, key=lambda job: job.number)
    assert all(job.number > batch[-1].number for job in jobs if job not in batch)


@given(JOBS, st.integers(1, 120))
def test_round_robin_leaves_out_nobody_who_waited_longer(jobs, budget):
    batch = next_batch(jobs, "round_robin", budget)
    for left_out in jobs:
        if left_out not in batch:
            assert all(left_out.last_step >= job.last_step for job in batch)


@given(JOBS, st.sampled_from(sorted(POLICIES)), st.integers(1, 120), st.randoms())
def test_the_order_in_which_jobs_are_listed_does_not_matter(jobs, policy, budget, random):
    shuffled = list(jobs)
    random.shuffle(shuffled)
    assert next_batch(shuffled, policy, budget) == next_batch(jobs, policy, budget)


@pytest.mark.parametrize(
    ("policy", "turns"),
    [("fcfs", [(0, 1)] * 4), ("round_robin", [(0, 1), (2, 3), (4, 0), (1, 2)])],
)
def test_turns_of_five_equal_jobs_two_at_a_time(policy, turns):
    last_step = dict.fromkeys(range(5), -1)
    for step, expected in enumerate(turns):
        batch = next_batch([Running(number, last, 10) for number, last in last_step.items()], policy, 20)
        assert tuple(job.number for job in batch) == expected
        last_step.update(dict.fromkeys((job.number for job in batch), step))
