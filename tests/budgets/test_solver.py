"""The solver against brute force in whole numbers, an exact integer program, and a bound that any price gives."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from pagedvid.budgets import solver
from pagedvid.budgets.solver import Choices, allocate, lower_hull
from pagedvid.errors import ConfigError
from tests.budgets.items import PAGE_BYTES, bits_item, budget_between, joint_item, total_bytes, total_error

POINTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), min_size=1, max_size=8)
"""(bytes, error) of the choices of one item. Whole numbers: sums and the comparison of slopes are exact."""


def item_of(points: Sequence[tuple[int, int]]) -> Choices:
    num_bytes, errors = zip(*points, strict=True)
    return Choices(num_bytes, tuple(map(float, errors)))


ITEMS = st.lists(POINTS.map(item_of), max_size=4)


def walk_error(items: Sequence[Choices], budget_bytes: int) -> float:
    """Where the walk alone ends: the step that saves most per byte, until one does not fit."""
    hulls = [lower_hull(item) for item in items]
    numbers = [hull[0] for hull in hulls]

    def step(place: int, taken: int) -> list[tuple[float, int, int]]:
        if taken + 1 == len(hulls[place]):
            return []
        here, there, item = hulls[place][taken], hulls[place][taken + 1], items[place]
        saved = item.errors[here] - item.errors[there]
        return [(-saved / (item.num_bytes[there] - item.num_bytes[here]), place, taken + 1)]

    steps = [first for place in range(len(items)) for first in step(place, 0)]
    heapq.heapify(steps)
    while steps:
        _, place, taken = heapq.heappop(steps)
        before, numbers[place] = numbers[place], hulls[place][taken]
        if total_bytes(items, numbers) > budget_bytes:
            numbers[place] = before
            break
        for following in step(place, taken):
            heapq.heappush(steps, following)
    return total_error(items, numbers)


@given(POINTS)
def test_the_hull_is_the_corners_below_every_line_between_two_choices(points):
    def on_the_hull(point: tuple[int, int]) -> bool:
        x, y = point
        if any(b <= x and e <= y and (b, e) != point for b, e in points):
            return False
        lines = itertools.product(points, repeat=2)
        return not any(a < x < b and (b - a) * (y - d) >= (x - a) * (e - d) for (a, d), (b, e) in lines)

    numbers = lower_hull(item_of(points))
    assert [points[number] for number in numbers] == sorted({point for point in points if on_the_hull(point)})
    assert all(points.index(points[number]) == number for number in numbers)  # of equal choices the first


@pytest.mark.parametrize("seed", range(20))
def test_the_hull_is_convex_and_below_all_choices(seed):
    item = joint_item(np.random.default_rng(seed), roughness=0.5, num_windows=6)
    hull = lower_hull(item)
    hull_bytes, hull_errors = [item.num_bytes[n] for n in hull], [item.errors[n] for n in hull]
    assert hull_bytes[0] == min(item.num_bytes) and hull_errors[-1] == min(item.errors)
    assert all(later > earlier for earlier, later in pairwise(hull_bytes))
    slopes = np.diff(hull_errors) / np.diff(hull_bytes)
    assert (slopes < 0).all() and (np.diff(slopes) > 0).all()
    below = np.interp(item.num_bytes, hull_bytes, hull_errors)
    assert (np.array(item.errors) >= below - 1e-12 * max(item.errors)).all()


@given(ITEMS, st.integers(0, 50))
def test_few_items_get_the_optimum(items, budget_bytes):
    everything = list(itertools.product(*(range(len(item.errors)) for item in items)))
    errors = [total_error(items, numbers) for numbers in everything if total_bytes(items, numbers) <= budget_bytes]
    if not errors:
        with pytest.raises(ConfigError):
            allocate(items, budget_bytes)
        return
    numbers = allocate(items, budget_bytes)
    assert total_bytes(items, numbers) <= budget_bytes
    assert total_error(items, numbers) == min(errors)


def shapes(random: np.random.Generator, kind: str) -> list[Choices]:
    num_items = int(random.integers(5, 41))
    if kind == "joint":
        return [joint_item(random, 0.3, num_windows=3) for _ in range(num_items // 2)]
    return [bits_item(random, {"smooth": 0.0, "rough": 0.7}[kind]) for _ in range(num_items)]


def exact_error(items: Sequence[Choices], budget_bytes: int, unit: float) -> float:
    """The least sum of errors, in units of `unit`, by HiGHS: one binary variable for each choice of each item."""
    owner = np.repeat(np.arange(len(items)), [len(item.errors) for item in items])
    pages = np.concatenate([item.num_bytes for item in items]) // PAGE_BYTES
    one_each = (owner == np.arange(len(items))[:, None]).astype(float)
    found = milp(
        np.concatenate([item.errors for item in items]) / unit,
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(pages, 0, budget_bytes // PAGE_BYTES)],
        options={"mip_rel_gap": 0.0},
    )
    assert found.success, found.message
    return float(found.fun)


@pytest.mark.parametrize("seed", range(80))
@pytest.mark.parametrize("kind", ["smooth", "rough", "joint"])
def test_realistic_items_get_the_optimum_of_the_integer_program(kind, seed):
    random = np.random.default_rng(seed)
    items = shapes(random, kind)
    budget_bytes = budget_between(items, random.uniform(0.02, 0.7))
    numbers = allocate(items, budget_bytes)
    assert total_bytes(items, numbers) <= budget_bytes
    assert exact_error(items, budget_bytes, unit=total_error(items, numbers)) == pytest.approx(1, rel=1e-5)


@given(ITEMS, st.integers(0, 50), st.integers(0, 20))
def test_error_is_at_most_the_walks_and_so_at_most_that_of_a_walk_to_less(items, budget_bytes, more_bytes):
    budget_bytes += sum(min(item.num_bytes) for item in items)
    error = total_error(items, allocate(items, budget_bytes + more_bytes))
    assert error <= walk_error(items, budget_bytes + more_bytes) <= walk_error(items, budget_bytes)


@pytest.mark.parametrize(("items_changed", "sums"), [(0, 1), (1, 1), (3, 2)])
@given(ITEMS, st.integers(0, 50))
def test_the_promise_holds_where_not_all_exchanges_are_followed(items_changed, sums, items, budget_bytes):
    budget_bytes += sum(min(item.num_bytes) for item in items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "MAX_CHANGED_ITEMS", items_changed)
        patch.setattr(solver, "MAX_SUMS", sums)
        numbers = allocate(items, budget_bytes)
    assert total_bytes(items, numbers) <= budget_bytes
    assert total_error(items, numbers) <= walk_error(items, budget_bytes)


@pytest.mark.parametrize("seed", range(20))
def test_items_in_another_order_get_the_same(seed):
    random = np.random.default_rng(seed)
    items = [bits_item(random, roughness=0.7) for _ in range(20)]
    order, budget_bytes = random.permutation(len(items)).tolist(), budget_between(items, random.uniform(0, 1))
    numbers = allocate(items, budget_bytes)
    assert allocate([items[place] for place in order], budget_bytes) == tuple(numbers[place] for place in order)


@given(ITEMS)
def test_a_budget_without_limit_gives_everyone_the_least_error_in_the_fewest_bytes(items):
    for item, number in zip(items, allocate(items, 10**30), strict=True):
        choices = list(zip(item.errors, item.num_bytes, strict=True))
        assert choices[number] == min(choices)


@pytest.mark.parametrize("share", [0.003, 0.03, 0.3])
def test_thousands_of_items_are_near_the_bound(share):
    random = np.random.default_rng(0)
    items = [joint_item(random, 0.3, num_windows=8) for _ in range(3200)]
    budget_bytes = budget_between(items, share)
    numbers = allocate(items, budget_bytes)
    assert total_bytes(items, numbers) <= budget_bytes
    curves = [(np.array(item.num_bytes), np.array(item.errors)) for item in items]

    def bound(price: float) -> float:
        """At any price of a byte, no allocation has less error."""
        return sum(float((errors + price * num_bytes).min()) for num_bytes, errors in curves) - price * budget_bytes

    assert total_error(items, numbers) <= 1.01 * max(map(bound, np.geomspace(1e-12, 1e-4, 30)))


def test_a_budget_below_the_cheapest_allocation_names_what_that_takes():
    items = [Choices((5, 3), (0.0, 1.0)), Choices((4,), (1.0,))]
    assert allocate(items, 7) == (1, 0)
    with pytest.raises(ConfigError, match="budget_bytes is 6; the cheapest choices of the 2 items take 7 bytes"):
        allocate(items, 6)
    with pytest.raises(ConfigError, match=r"budget_bytes is 6\.5"):
        allocate(items, 6.5)


@pytest.mark.parametrize(
    ("num_bytes", "errors", "message"),
    [
        ((), (), "0 numbers of bytes and 0 errors"),
        ((1, 2), (1.0,), "2 numbers of bytes and 1 errors"),
        ((-1,), (1.0,), "-1; it must be at least 0"),
        ((1.5,), (1.0,), "1.5"),
        ((2**60,), (1.0,), "at most"),
        ((1,), (float("nan"),), "nan"),
        ((1,), (float("inf"),), "inf"),
        ((1,), (-1.0,), "-1.0"),
    ],
)
def test_wrong_choices_are_refused(num_bytes, errors, message):
    with pytest.raises(ConfigError, match=message):
        Choices(num_bytes, errors)
