"""Which ranges of a step are attended together: those of equal shape, as many as the scratch holds.

    range   current   chunks that it reads              batch [a b]: column 0, int8, 128 tokens of a and of b
      a     [a]       int8 128  int2 128  int2 128                   column 1, int2, 128 tokens of a and of b
      b     [b]       int8 128  int2 128  int2 128                   column 2, int2, 128 tokens of a and of b
      c     [c]       int8 128                          batch [c]:   column 0

So 16 small streams of equal shape need as many calls as one. The keys of a range are divided as if it were alone; only
if the scratch cannot hold the partials of the whole batch are these merged in more rounds.

Axes: E ranges of a batch, T tokens of a range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.cache.plan import RangePlan, Read, StepPlan
from pagedvid.codecs.assignment import ChunkCodecs

Rows = slice | Tensor
"""Packed tokens, E * T of them: consecutive, or their numbers, int64."""


@dataclass(frozen=True, eq=False)
class Run:
    """Equally many packed tokens of each range of a batch."""

    starts: Tensor
    """The first of each, int32 [E], on the device."""
    num_tokens: int
    rows: Rows

    @staticmethod
    def of(ranges: Sequence[RangePlan], device: torch.device) -> Run:
        """The tokens of these ranges, which are equally long."""
        starts, num_tokens = [range_.start for range_ in ranges], ranges[0].num_tokens
        first = torch.tensor(starts, dtype=torch.int32)
        if starts == list(range(starts[0], starts[0] + num_tokens * len(ranges), num_tokens)):
            rows: Rows = slice(starts[0], starts[0] + num_tokens * len(ranges))
        else:
            rows = (first.long()[:, None] + torch.arange(num_tokens)).flatten().to(device)
        return Run(first.to(device), num_tokens, rows)

    def of_packed(self, x_ThD: Tensor) -> Tensor:
        """Packed tokens [T, h, D] -> those of the run, [E, T, h, D]; a view if they are consecutive."""
        return x_ThD[self.rows].unflatten(0, (-1, self.num_tokens))


@dataclass(frozen=True, eq=False)
class Column:
    """One chunk of each range of a batch; all have the same codecs and length."""

    reads: tuple[Read, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of each chunk."""
        return self.reads[0].chunk.num_tokens

    @property
    def codecs(self) -> ChunkCodecs:
        """How they are stored."""
        return self.reads[0].chunk.codecs


@dataclass(frozen=True, eq=False)
class Batch:
    """Ranges that are attended together."""

    ranges: tuple[RangePlan, ...]
    numbers: tuple[int, ...]
    """Which ranges of the step."""
    queries: Run
    current: tuple[Run, ...]
    """The runs whose keys they see besides their history, their own last."""
    context_tokens: int
    """Context keys of each range."""
    columns: tuple[Column, ...]

    @cached_property
    def num_current_tokens(self) -> int:
        """Keys that each range sees besides its history."""
        return self.context_tokens + sum(run.num_tokens for run in self.current)

    @cached_property
    def num_ranges(self) -> int:
        """E."""
        return len(self.ranges)


def batches_of(
    plan: StepPlan, context_tokens: Sequence[int], device: torch.device, most: Callable[[RangePlan, int], int]
) -> list[Batch]:
    """The batches of a step.

    `context_tokens`: number of context keys of each range; empty when no range has any. `most`: (range, number of keys
    that it sees besides its history) -> how many such ranges may be attended together.
    """
    alike: dict[object, list[int]] = {}
    for number, range_ in enumerate(plan.ranges):
        context = context_tokens[number] if context_tokens else 0
        alike.setdefault(_shape(plan, range_, context), []).append(number)
    batches = []
    for numbers in alike.values():
        context, range_ = context_tokens[numbers[0]] if context_tokens else 0, plan.ranges[numbers[0]]
        num_current = context + sum(plan.ranges[number].num_tokens for number in range_.current)
        size = max(1, most(range_, num_current))
        for first in range(0, len(numbers), size):
            batches.append(_batch(plan, tuple(numbers[first : first + size]), context, device))
    return batches


def _shape(plan: StepPlan, range_: RangePlan, context_tokens: int) -> object:
    reads = tuple((read.chunk.num_tokens, read.chunk.codecs, tuple(read.chunk.runs.items())) for read in range_.reads)
    current = tuple(plan.ranges[number].num_tokens for number in range_.current)
    return range_.num_tokens, current, context_tokens, reads


def _batch(plan: StepPlan, numbers: tuple[int, ...], context_tokens: int, device: torch.device) -> Batch:
    ranges = tuple(plan.ranges[number] for number in numbers)
    seen = zip(*(range_.current for range_ in ranges), strict=True)
    current = tuple(Run.of([plan.ranges[number] for number in column], device) for column in seen)
    columns = tuple(Column(reads) for reads in zip(*(range_.reads for range_ in ranges), strict=True))
    return Batch(ranges, numbers, current[-1], current, context_tokens, columns)
