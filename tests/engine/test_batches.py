"""The scheduler's properties: order, budget, fairness. Plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedvid.engine import scheduler
from pagedvid.engine.scheduler import (
    FAR_AHEAD_SECONDS,
    MOST_WAITED_STEPS,
    POLICIES,
    STARTED_SECONDS,
    URGENT_SECONDS,
    count_waits,
    next_batch,
)


@dataclass(eq=False)
class Running:
    number: int
    waited_steps: int = 0
    num_tokens: int = 10
    priority: int = 0
    is_mid_chunk: bool = False
    credit_seconds: float | None = None


COSTS = st.integers(1, 50)
CREDITS = st.none() | st.floats(-20, 20)
FIELDS = st.tuples(st.integers(0, 99), st.integers(0, 300), COSTS, st.integers(-3, 3), st.booleans(), CREDITS)
JOBS = st.lists(FIELDS, unique_by=lambda fields: fields[0]).map(lambda rows: [Running(*row) for row in rows])


def numbers(batch):
    return [job.number for job in batch]


def order(policy, *jobs):
    """One job a forward, until all have run."""
    left, done = list(jobs), []
    while left:
        (job,) = next_batch(left, policy, 1)
        left.remove(job)
        done.append(job.number)
    return done


@given(JOBS, st.sampled_from(sorted(POLICIES)), st.integers(1, 120))
def test_a_batch_is_within_the_budget_and_as_long_as_possible(jobs, policy, budget):
    batch = next_batch(jobs, policy, budget)
    num_tokens = sum(job.num_tokens for job in batch)
    assert len(set(batch)) == len(batch)
    assert bool(batch) == bool(jobs)
    assert num_tokens <= budget or len(batch) == 1
    left_out = [job for job in jobs if job not in batch and POLICIES[policy](job)[0] == POLICIES[policy](batch[0])[0]]
    if left_out:
        assert num_tokens + max(job.num_tokens for job in left_out) > budget


@given(JOBS, st.integers(1, 120))
def test_fcfs_leaves_out_only_later_arrivals(jobs, budget):
    batch = next_batch(jobs, "fcfs", budget)
    assert numbers(batch) == sorted(numbers(batch))
    assert all(job.number > batch[-1].number for job in jobs if job not in batch)


@given(JOBS, st.integers(1, 120))
def test_round_robin_leaves_out_nobody_who_waited_longer(jobs, budget):
    batch = next_batch(jobs, "round_robin", budget)
    for left_out in jobs:
        if left_out not in batch:
            assert all(left_out.waited_steps <= job.waited_steps for job in batch)


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
    jobs = [Running(number) for number in range(5)]
    for expected in turns:
        batch = next_batch(jobs, policy, 20)
        assert tuple(numbers(batch)) == expected
        count_waits(jobs, batch)


def test_priority_runs_the_highest_first_and_of_equals_the_oldest():
    assert order("priority", Running(0), Running(1, priority=2), Running(2, priority=-1), Running(3, priority=2)) == [
        1, 3, 0, 2,
    ]  # fmt: skip


@given(st.lists(st.floats(-50, FAR_AHEAD_SECONDS), min_size=1, unique=True))
def test_whoever_will_stall_first_runs_first(credits):
    jobs = [Running(number, credit_seconds=credit) for number, credit in enumerate(credits)]
    assert [credits[number] for number in order("deadline", *jobs)] == sorted(credits)


def test_throughput_jobs_come_after_viewers_and_before_those_that_are_far_ahead():
    far, near = FAR_AHEAD_SECONDS + 0.1, FAR_AHEAD_SECONDS
    jobs = [
        Running(0, credit_seconds=far),
        Running(1),
        Running(2, priority=1),
        Running(3, credit_seconds=near),
        Running(4, credit_seconds=far + 1, is_mid_chunk=True),
    ]
    assert order("deadline", *jobs) == [3, 2, 1, 0, 4]


def test_viewers_in_need_share_forwards_with_each_other_and_with_overdue_jobs_only():
    need = URGENT_SECONDS - 0.1
    fine = [Running(2, credit_seconds=URGENT_SECONDS), Running(3), Running(4, credit_seconds=FAR_AHEAD_SECONDS + 1)]
    urgent = [Running(0, credit_seconds=need), Running(1, credit_seconds=-1.0)]
    assert numbers(next_batch([*fine, *urgent], "deadline", 10**9)) == [1, 0]
    assert numbers(next_batch(fine, "deadline", 10**9)) == [2, 3, 4]
    overdue = Running(5, waited_steps=MOST_WAITED_STEPS)
    assert numbers(next_batch([*fine, *urgent, overdue], "deadline", 10**9)) == [5, 1, 0]
    for policy in ("fcfs", "round_robin", "priority"):
        assert numbers(next_batch([*fine, *urgent], policy, 10**9)) == [0, 1, 2, 3, 4]


@given(st.floats(-20, FAR_AHEAD_SECONDS), st.floats(-20, FAR_AHEAD_SECONDS))
def test_a_started_chunk_gives_way_only_beyond_the_bound(started, other):
    first, *_ = order(
        "deadline", Running(0, credit_seconds=other), Running(1, credit_seconds=started, is_mid_chunk=True)
    )
    if other < started - STARTED_SECONDS - 1e-9:
        assert first == 0
    if other > started - STARTED_SECONDS + 1e-9:
        assert first == 1


def test_an_overdue_job_goes_first_whatever_it_is():
    waited = Running(9, MOST_WAITED_STEPS, priority=-5)
    for policy in ("priority", "deadline"):
        preferred = Running(0, MOST_WAITED_STEPS - 1, priority=5, credit_seconds=-100.0)
        assert order(policy, preferred, waited) == [9, 0]
        assert order(policy, preferred, replace(waited, waited_steps=MOST_WAITED_STEPS - 1)) == [0, 9]
        assert order(policy, waited, replace(preferred, waited_steps=MOST_WAITED_STEPS + 1)) == [0, 9]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([("round_robin", 0), ("priority", 7), ("deadline", 7)]),
    st.lists(FIELDS, min_size=1, max_size=12, unique_by=lambda fields: fields[0]),
    st.integers(1, 60),
    st.randoms(use_true_random=False),
)
def test_no_job_waits_longer_than_the_bound(policy_and_most, rows, budget, random):
    """Priorities and credits change at will between steps."""
    policy, most = policy_and_most
    jobs = [replace(Running(*row), waited_steps=0) for row in rows]
    longest = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "MOST_WAITED_STEPS", most)
        for _ in range(120):
            batch = next_batch(jobs, policy, budget)
            count_waits(jobs, batch)
            longest = max(longest, *(job.waited_steps for job in jobs))
            for job in jobs:
                job.priority, job.credit_seconds = random.choice([-3, 0, 9]), random.choice([None, -9.0, 1.0, 20.0])
    assert longest <= most + len(jobs) - 1


@pytest.mark.parametrize("policy", ["priority", "deadline"])
def test_the_bound_is_met_and_costs_little(policy):
    """One job that is always preferred, and three that never are."""
    jobs = [Running(0, priority=1, credit_seconds=-1.0), Running(1), Running(2), Running(3)]
    turns, longest = [0] * 4, 0
    num_steps = 4 * MOST_WAITED_STEPS
    for _ in range(num_steps):
        batch = next_batch(jobs, policy, 10)
        count_waits(jobs, batch)
        turns[batch[0].number] += 1
        longest = max(longest, *(job.waited_steps for job in jobs))
    assert longest == MOST_WAITED_STEPS + 2
    assert min(turns) == 3
    assert turns[0] >= num_steps * (1 - 3 / MOST_WAITED_STEPS)
