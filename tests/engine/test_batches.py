"""The scheduler's properties: order, budget, fairness. Pure integers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.engine.scheduler import POLICIES, Candidate, next_batch

COSTS = st.integers(1, 50)
CANDIDATES = st.lists(st.tuples(st.integers(0, 99), st.integers(-1, 9), COSTS), unique_by=lambda fields: fields[0]).map(
    lambda rows: [Candidate(*row) for row in rows]
)


@given(CANDIDATES, st.sampled_from(sorted(POLICIES)), st.integers(1, 120))
def test_a_batch_is_within_the_budget_and_as_long_as_possible(candidates, policy, budget):
    batch = next_batch(candidates, policy, budget)
    by_number = {candidate.number: candidate for candidate in candidates}
    num_tokens = sum(by_number[number].num_tokens for number in batch)
    assert len(set(batch)) == len(batch)
    assert bool(batch) == bool(candidates)
    assert num_tokens <= budget or len(batch) == 1
    left_out = [candidate for candidate in candidates if candidate.number not in batch]
    if left_out:
        assert num_tokens + max(candidate.num_tokens for candidate in left_out) > budget


@given(CANDIDATES, st.integers(1, 120))
def test_fcfs_leaves_out_only_later_arrivals(candidates, budget):
    batch = next_batch(candidates, "fcfs", budget)
    assert list(batch) == sorted(batch)
    assert all(candidate.number > batch[-1] for candidate in candidates if candidate.number not in batch)


@given(CANDIDATES, st.integers(1, 120))
def test_round_robin_leaves_out_nobody_who_waited_longer(candidates, budget):
    batch = next_batch(candidates, "round_robin", budget)
    ran = [candidate for candidate in candidates if candidate.number in batch]
    for left_out in candidates:
        if left_out.number not in batch:
            assert all(left_out.last_step >= candidate.last_step for candidate in ran)


@given(CANDIDATES, st.sampled_from(sorted(POLICIES)), st.integers(1, 120), st.randoms())
def test_the_order_in_which_jobs_are_listed_does_not_matter(candidates, policy, budget, random):
    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert next_batch(shuffled, policy, budget) == next_batch(candidates, policy, budget)


@pytest.mark.parametrize(
    ("policy", "turns"),
    [("fcfs", [(0, 1)] * 4), ("round_robin", [(0, 1), (2, 3), (4, 0), (1, 2)])],
)
def test_turns_of_five_equal_jobs_two_at_a_time(policy, turns):
    last_step = dict.fromkeys(range(5), -1)
    for step, expected in enumerate(turns):
        batch = next_batch([Candidate(number, last, 10) for number, last in last_step.items()], policy, 20)
        assert batch == expected
        last_step.update(dict.fromkeys(batch, step))
