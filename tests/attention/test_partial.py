"""Merging partial attention results."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.attention.partial import Partial, empty_partial, merge, merge_into


def dense(q: Tensor, k: Tensor, v: Tensor) -> Partial:
    """Attention in float64, returned in canonical float32."""
    scores = q.double() @ k.double().mT
    lse = torch.logsumexp(scores, dim=-1)
    return Partial((torch.exp(scores - lse[..., None]) @ v.double()).float(), lse.float())


def problem(num_keys: int, seed: int = 0, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 5, 8), (2, num_keys, 8), (2, num_keys, 8))
    q, k, v = (torch.randn(*shape, generator=generator) for shape in shapes)
    return q * size, k, v


def split(k: Tensor, v: Tensor, cuts: list[int]) -> list[tuple[Tensor, Tensor]]:
    bounds = [0, *sorted(cuts), k.shape[1]]
    return [(k[:, a:b], v[:, a:b]) for a, b in itertools.pairwise(bounds)]


def partial_of(q: Tensor, k: Tensor, v: Tensor) -> Partial:
    return dense(q, k, v) if k.shape[1] else empty_partial((2, 5, 8))


@given(st.lists(st.integers(0, 40), max_size=6), st.sampled_from([0.1, 1.0, 30.0]), st.permutations(range(7)))
def test_any_grouping_in_any_order_is_attention_over_all_keys(cuts, size, order):
    """I13. `cuts` may leave parts without keys."""
    q, k, v = problem(40, size=size)
    parts = [partial_of(q, *pair) for pair in split(k, v, cuts)]
    shuffled = [parts[i] for i in order if i < len(parts)]
    merged = functools.reduce(merge, shuffled)
    whole = dense(q, k, v)
    torch.testing.assert_close(merged.out, whole.out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged.lse, whole.lse, rtol=1e-6, atol=1e-5)


def test_merge_is_associative_and_commutative():
    q, k, v = problem(30)
    a, b, c = (partial_of(q, *pair) for pair in split(k, v, [4, 17]))
    for left, right in (
        (merge(merge(a, b), c), merge(a, merge(b, c))),
        (merge(a, b), merge(b, a)),
    ):
        torch.testing.assert_close(left.out, right.out, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(left.lse, right.lse, rtol=1e-6, atol=1e-6)


def test_two_empty_partials_are_empty():
    merged = merge(empty_partial((2, 5, 8)), empty_partial((2, 5, 8)))
    assert torch.equal(merged.out, torch.zeros(2, 5, 8))
    assert torch.equal(merged.lse, torch.full((2, 5), -torch.inf))


@pytest.mark.parametrize("is_first", [True, False])
def test_an_empty_partial_changes_nothing(is_first):
    some = dense(*problem(7))
    empty = empty_partial((2, 5, 8))
    merged = merge(empty, some) if is_first else merge(some, empty)
    assert torch.equal(merged.out, some.out) and torch.equal(merged.lse, some.lse)


def test_rows_may_be_empty_on_one_side_each():
    q, k, v = problem(6)
    a, b = dense(q, k[:, :3], v[:, :3]), dense(q, k[:, 3:], v[:, 3:])
    whole, only_a, only_b = dense(q, k, v), Partial(a.out.clone(), a.lse.clone()), Partial(b.out.clone(), b.lse.clone())
    a.out[:, 1], a.lse[:, 1] = 0.0, -torch.inf
    b.out[:, 2], b.lse[:, 2] = 0.0, -torch.inf
    merged = merge(a, b)
    torch.testing.assert_close(merged.out[:, 0], whole.out[:, 0])
    assert torch.equal(merged.out[:, 1], only_b.out[:, 1]) and torch.equal(merged.lse[:, 1], only_b.lse[:, 1])
    assert torch.equal(merged.out[:, 2], only_a.out[:, 2]) and torch.equal(merged.lse[:, 2], only_a.lse[:, 2])


def test_scores_far_apart_do_not_overflow():
    out = torch.ones(1, 1, 4)
    small, large = Partial(out, torch.tensor([[-3e4]])), Partial(2 * out, torch.tensor([[3e4]]))
    merged = merge(small, large)
    assert torch.equal(merged.out, 2 * out) and merged.lse.item() == 3e4


def test_lowering_the_lse_takes_mass_away():
    """The correction: `lse -= b` on a partial is b off the score of each of its keys."""
    q, k, v = problem(20)
    b = torch.rand(2, 5)
    cached, current = dense(q, k[:, :12], v[:, :12]), dense(q, k[:, 12:], v[:, 12:])
    cached.lse -= b
    scores = q.double() @ k.double().mT
    scores[..., :12] -= b.double()[..., None]
    expected = torch.softmax(scores, dim=-1) @ v.double()
    torch.testing.assert_close(merge(cached, current).out.double(), expected, rtol=1e-5, atol=1e-6)


def test_merge_leaves_its_inputs_alone_and_merge_into_only_the_other():
    q, k, v = problem(20)
    a, b = dense(q, k[:, :12], v[:, :12]), dense(q, k[:, 12:], v[:, 12:])
    copies = [x.clone() for x in (a.out, a.lse, b.out, b.lse)]
    merged = merge(a, b)
    assert all(torch.equal(x, copy) for x, copy in zip((a.out, a.lse, b.out, b.lse), copies, strict=True))
    merge_into(a, b)
    assert torch.equal(a.out, merged.out) and torch.equal(a.lse, merged.lse)
    assert torch.equal(b.out, copies[2]) and torch.equal(b.lse, copies[3])


def test_a_bfloat16_partial_is_merged_in_float32():
    q, k, v = problem(20)
    a, b = dense(q, k[:, :12], v[:, :12]), dense(q, k[:, 12:], v[:, 12:])
    merged = merge(a, Partial(b.out.bfloat16(), b.lse))
    assert merged.out.dtype == torch.float32
    torch.testing.assert_close(merged.out, merge(a, b).out, rtol=0, atol=0.02)
