"""Which choice every item gets, so that the sum of errors is small while one number of bytes is not exceeded.

This is the allocation of LU-KV (arXiv 2602.08585) with bytes in place of its tokens. Each item's error over bytes is
replaced by its lower convex hull; the walk takes the steps along all hulls in the order of the error that a byte saves,
until one does not fit. Its error never rises with the budget.

The walk leaves bytes over. They are spent on the items where leaving the walk costs least, all combinations of their
choices compared: the sum of errors never exceeds the walk's, and for tens of items it is the smallest possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagedvid.arguments import whole_number
from pagedvid.errors import ConfigError
from pagedvid.shown import shown
from pagedvid.units import MAX_BYTES

MAX_CHANGED_ITEMS, MAX_SUMS = 100, 1000
"""Items that may leave the walk, and combinations of their choices that are followed at a time. Bounds the time; with
more items than this the walk is so near to the optimum that what is missed does not matter."""

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """What one item can be given: parallel tuples, in any order. Raises ConfigError."""

    num_bytes: tuple[int, ...]
    errors: tuple[float, ...]
    """Finite and not negative; need neither fall with the bytes nor be convex."""
    bytes_C: Numbers = field(init=False, repr=False, compare=False)
    """The same as an array [choices]."""
    errors_C: Floats = field(init=False, repr=False, compare=False)
    """The same as an array [choices]."""

    def __post_init__(self) -> None:
        if not self.num_bytes or len(self.num_bytes) != len(self.errors):
            given = f"{len(self.num_bytes)} numbers of bytes and {len(self.errors)} errors"
            raise ConfigError(f"an item has {given}; give as many of one as of the other, and at least one")
        for num_bytes in self.num_bytes:
            whole_number("num_bytes of a choice", num_bytes, 0, MAX_BYTES, ConfigError)
        wrong = [error for error in self.errors if not 0 <= error < math.inf]
        if wrong:
            raise ConfigError(f"the error of a choice is {shown(wrong[0])}; errors must be finite and not negative")
        object.__setattr__(self, "bytes_C", np.array(self.num_bytes, np.int64))
        object.__setattr__(self, "errors_C", np.array(self.errors, np.float64))


def lower_hull(choices: Choices) -> tuple[int, ...]:
    """Numbers of the choices on the lower convex hull of error over bytes, cheapest first.

    The error falls from each to the next, and each step saves less error per byte than the step before. The first has
    the fewest bytes, the last the least error; of equal choices the first counts.
    """
    return tuple(_hull(choices).tolist())


def allocate(items: Sequence[Choices], budget_bytes: int) -> tuple[int, ...]:
    """The number of the choice of every item: a small sum of errors in at most `budget_bytes`.

    A larger budget never gives more error than the walk to a smaller one. The same arguments give the same result.
    Raises ConfigError if the budget does not hold every item's cheapest choice.
    """
    budget_bytes = whole_number("budget_bytes", budget_bytes, error=ConfigError)
    cheapest_bytes = sum(min(item.num_bytes) for item in items)
    if budget_bytes < cheapest_bytes:
        raise ConfigError(
            f"budget_bytes is {shown(budget_bytes)}; the cheapest choices of the {len(items)} items take "
            f"{cheapest_bytes} bytes; give at least as many, or cheaper choices"
        )
    walk = _walk(items, budget_bytes - cheapest_bytes)
    numbers = walk.numbers.tolist()
    for item, number in _exchanges(items, walk).items():
        numbers[item] = number
    return tuple(numbers)


class _Walk(NamedTuple):
    """Where the walk along the hulls ends."""

    numbers: Numbers
    """[items] the choice of each."""
    left_bytes: int
    price: float
    """Error per byte that the first step which does not fit would save; 0 if the walk took all steps."""


def _walk(items: Sequence[Choices], spare_bytes: int) -> _Walk:
    """The walk that starts from the cheapest choices and has `spare_bytes` more."""
    hulls = [_hull(item) for item in items]
    steps = [np.diff(item.bytes_C[hull]) for item, hull in zip(items, hulls, strict=True)]
    savings = [_savings(item, hull) for item, hull in zip(items, hulls, strict=True)]
    owner = np.repeat(np.arange(len(items)), [len(step) for step in steps])
    step_bytes, saved = np.concatenate([np.zeros(0, np.int64), *steps]), np.concatenate([np.zeros(0), *savings])
    order = np.argsort(-saved, kind="stable")  # an item's own steps stay in order: each saves less than the one before
    spent = np.cumsum(step_bytes[order])
    num_steps = int(np.count_nonzero(spent <= spare_bytes))
    taken = np.bincount(owner[order[:num_steps]], minlength=len(items))
    return _Walk(
        numbers=np.array([hull[count] for hull, count in zip(hulls, taken, strict=True)], np.int64),
        left_bytes=spare_bytes - (int(spent[num_steps - 1]) if num_steps else 0),
        price=float(saved[order[num_steps]]) if num_steps < len(order) else 0.0,
    )


class _Changes(NamedTuple):
    """What an item could be given instead of the walk's choice, and that choice itself, which changes nothing."""

    item: int
    numbers: Numbers
    num_bytes: Numbers
    """More than the walk's choice takes, or fewer: negative."""
    errors: Floats
    least_excess: float
    """Of the changes proper."""


class _Sums(NamedTuple):
    """Combinations of the opened items' choices, relative to the walk; each has less error than any cheaper one."""

    num_bytes: Numbers
    """[sums], ascending."""
    errors: Floats
    """[sums]"""
    picks: Numbers
    """[sums, opened items] the choices."""

    def at(self, rows: Numbers) -> _Sums:
        """Some of the sums."""
        return _Sums(self.num_bytes[rows], self.errors[rows], self.picks[rows])


def _exchanges(items: Sequence[Choices], walk: _Walk) -> dict[int, int]:
    """Numbers of the choices of the items that leave the walk.

    A change of an item has an excess, errors + price * num_bytes, which the hull keeps from being negative: no change
    saves more per byte than the price. So the bytes that are left can save no more than price * left_bytes, less the
    excess of all changes. Items are opened from the least excess upwards, until none can improve the best result.
    """
    opened = _changes(items, walk)[:MAX_CHANGED_ITEMS]
    sums = _Sums(np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int64))
    best_error, best_picks = 0.0, sums.picks[0]
    for changes in opened:
        within = best_error + walk.price * walk.left_bytes  # with this excess, nothing is better than the best
        excess = sums.errors + walk.price * sums.num_bytes
        sums = sums.at(np.flatnonzero(excess + changes.least_excess < within))
        if not len(sums.errors):
            break
        sums = _extended(sums, changes, walk.price, within)
        num_fitting = int(np.searchsorted(sums.num_bytes, walk.left_bytes, side="right"))
        if num_fitting and sums.errors[num_fitting - 1] < best_error:
            best_error, best_picks = float(sums.errors[num_fitting - 1]), sums.picks[num_fitting - 1]
    return {changes.item: int(pick) for changes, pick in zip(opened, best_picks, strict=False)}


def _extended(sums: _Sums, changes: _Changes, price: float, within: float) -> _Sums:
    """Each of the sums with each of one more item's choices, as far as the excess is below `within`."""
    num_bytes = np.add.outer(sums.num_bytes, changes.num_bytes).ravel()
    errors = np.add.outer(sums.errors, changes.errors).ravel()
    excess = errors + price * num_bytes
    kept = np.flatnonzero(excess < within)
    kept = kept[_frontier(num_bytes[kept], errors[kept])]
    if len(kept) > MAX_SUMS:
        kept = kept[np.sort(np.argsort(excess[kept], kind="stable")[:MAX_SUMS])]
    rows, columns = np.divmod(kept, len(changes.numbers))
    picks = np.column_stack((sums.picks[rows], changes.numbers[columns]))
    return _Sums(num_bytes[kept], errors[kept], picks)


def _changes(items: Sequence[Choices], walk: _Walk) -> list[_Changes]:
    """Changes that could save something, by item, from the least excess upwards."""
    found: list[_Changes] = []
    within = walk.price * walk.left_bytes
    if not within:
        return found
    for place, (item, number) in enumerate(zip(items, walk.numbers.tolist(), strict=True)):
        num_bytes, errors = item.bytes_C - item.bytes_C[number], item.errors_C - item.errors_C[number]
        excess = errors + walk.price * num_bytes
        least_excess = float(np.delete(excess, number).min(initial=math.inf))
        if least_excess < within:
            kept = np.flatnonzero(excess < within)
            found.append(_Changes(place, kept, num_bytes[kept], errors[kept], least_excess))
    return sorted(found, key=lambda changes: changes.least_excess)


def _hull(choices: Choices) -> Numbers:
    """`lower_hull` as an array."""
    numbers = _frontier(choices.bytes_C, choices.errors_C)
    while True:
        saved = _savings(choices, numbers)
        corners = saved[:-1] > saved[1:]
        if corners.all():
            return numbers
        numbers = numbers[np.concatenate(([True], corners, [True]))]  # the others are above a line between two choices


def _savings(choices: Choices, numbers: Numbers) -> Floats:
    """[numbers - 1] the error that each step from one choice to the next saves per byte."""
    return -np.diff(choices.errors_C[numbers]) / np.diff(choices.bytes_C[numbers])


def _frontier(num_bytes: Numbers, errors: Floats) -> Numbers:
    """Numbers of the points that have less error than any cheaper or equally cheap one, cheapest first."""
    order = np.lexsort((errors, num_bytes))
    least = np.minimum.accumulate(errors[order])
    return order[np.diff(least, prepend=math.inf) < 0]
