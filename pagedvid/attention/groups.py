"""How a step's ranges and chunks are grouped into batched attention calls.

Ranges of equal length form batches; inside a batch, the j-th source of every range (its own current keys first, then
the chunks it reads, then its context) is one batched call wherever shapes agree:

    range   current   read 0    read 1    read 2              call 0: a b c  current keys
      a     [a]       int8 128  int2 128  int2 128            call 1: a b c  int8, 128 tokens
      b     [b]       int8 128  int2 128                      call 2: a b    int2, 128 tokens
      c     [c]       int8 128                                call 3: a      int2, 128 tokens

So 16 small streams need as many calls as one. A large stream is split by heads instead (torch_backend.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from pagedvid.attention.rotation import are_shifted
from pagedvid.cache.plan import RangePlan, Read, StepPlan
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.rotary.tables import RopeTables, angle_between

Angles = tuple[Tensor, Tensor]
"""Cosines and sines, [E, 1, n, D/2] each."""


@dataclass
class CurrentSource:
    """Current keys of this step, one run of tokens per range; never corrected."""

    rows: Tensor
    """Which ranges of the batch, int64 [E]."""
    numbers: tuple[int, ...]
    """For each, the range of the step that the keys belong to."""
    tokens: Tensor
    """Their packed token indices, int64 [E, n]."""


@dataclass
class PagedSource:
    """One committed chunk per range, all with the same codecs and length."""

    rows: Tensor
    reads: tuple[Read, ...]
    codecs: ChunkCodecs
    num_tokens: int
    angles: Angles | None
    """For keys stored before rotary embedding: their positions in this step. None: they are not rotated."""
    shift: Angles | None
    """For keys stored after rotary embedding: from stored to current positions. None: these are the same."""


@dataclass
class ContextSource:
    """Keys and values passed to the call, such as those of a text: equally many for each range, never corrected."""

    rows: Tensor
    numbers: tuple[int, ...]
    """For each, the range of the step that the context belongs to."""


Source = CurrentSource | PagedSource | ContextSource


@dataclass
class RangeBatch:
    """Ranges of equal length that are attended together."""

    numbers: tuple[int, ...]
    """Which ranges of the step."""
    tokens: Tensor
    """Packed token indices, int64 [E, T]."""
    sources: list[Source]


def group_ranges(
    plan: StepPlan,
    rope: RopeTables | None,
    dtype: torch.dtype,
    context_tokens: Sequence[int],
    ranges_per_batch: Callable[[RangePlan], int],
) -> list[RangeBatch]:
    """All batches of a step.

    `context_tokens`: number of context keys of each range; empty when no range has any. `ranges_per_batch`: how many
    ranges like this one fit in the scratch together.
    """
    by_length: dict[int, list[RangePlan]] = {}
    for range_ in plan.ranges:
        by_length.setdefault(range_.num_tokens, []).append(range_)
    batches = []
    for ranges in by_length.values():
        size = max(1, min(ranges_per_batch(range_) for range_ in ranges))
        batches += [
            _batch(plan, ranges[i : i + size], rope, dtype, context_tokens) for i in range(0, len(ranges), size)
        ]
    return batches


def _batch(
    plan: StepPlan,
    ranges: Sequence[RangePlan],
    rope: RopeTables | None,
    dtype: torch.dtype,
    context_tokens: Sequence[int],
) -> RangeBatch:
    numbers = tuple(range_.current[-1] for range_ in ranges)
    tokens = torch.stack([torch.arange(range_.start, range_.stop) for range_ in ranges])
    sources = [
        *_current_sources(plan, ranges),
        *_paged_sources(ranges, rope, dtype),
        *_context_sources(numbers, context_tokens),
    ]
    return RangeBatch(numbers, tokens, sources)


def _current_sources(plan: StepPlan, ranges: Sequence[RangePlan]) -> list[Source]:
    sources: list[Source] = []
    for column in zip_longest(*(reversed(range_.current) for range_ in ranges)):  # a range's own keys come first
        by_length: dict[int, list[tuple[int, int]]] = {}
        for row, number in enumerate(column):
            if number is not None:
                by_length.setdefault(plan.ranges[number].num_tokens, []).append((row, number))
        for pairs in by_length.values():
            numbers = tuple(number for _, number in pairs)
            seen = [torch.arange(plan.ranges[number].start, plan.ranges[number].stop) for number in numbers]
            sources.append(
                CurrentSource(torch.tensor([row for row, _ in pairs], dtype=torch.int64), numbers, torch.stack(seen))
            )
    return sources


def _paged_sources(ranges: Sequence[RangePlan], rope: RopeTables | None, dtype: torch.dtype) -> list[Source]:
    sources: list[Source] = []
    for column in zip_longest(*(range_.reads for range_ in ranges)):
        by_shape: dict[tuple[ChunkCodecs, int], list[tuple[int, Read]]] = {}
        for row, read in enumerate(column):
            if read is not None:
                by_shape.setdefault((read.chunk.codecs, read.chunk.num_tokens), []).append((row, read))
        for (codecs, num_tokens), pairs in by_shape.items():
            rows, reads = torch.tensor([row for row, _ in pairs], dtype=torch.int64), tuple(read for _, read in pairs)
            angles, shift = _angles(reads, rope, dtype), _shift(codecs, reads, rope, dtype)
            sources.append(PagedSource(rows, reads, codecs, num_tokens, angles, shift))
    return sources


def _context_sources(numbers: Sequence[int], context_tokens: Sequence[int]) -> list[Source]:
    by_length: dict[int, list[tuple[int, int]]] = {}
    for row, number in enumerate(numbers):
        if context_tokens and context_tokens[number]:
            by_length.setdefault(context_tokens[number], []).append((row, number))
    return [
        ContextSource(torch.tensor([row for row, _ in pairs], dtype=torch.int64), tuple(number for _, number in pairs))
        for pairs in by_length.values()
    ]


def _angles(reads: Sequence[Read], rope: RopeTables | None, dtype: torch.dtype) -> Angles | None:
    """Rotary tables at the chunks' positions in this step."""
    if rope is None:
        return None
    cos, sin = _stacked(rope, [(read.first_token, read.chunk.num_tokens) for read in reads])
    return cos.to(dtype), sin.to(dtype)


def _shift(codecs: ChunkCodecs, reads: Sequence[Read], rope: RopeTables | None, dtype: torch.dtype) -> Angles | None:
    """Rotation from the chunks' stored to their current positions."""
    if rope is None or not are_shifted(codecs, reads):
        return None
    stored = _stacked(rope, [(read.chunk.position, read.chunk.num_tokens) for read in reads])
    cos, sin = angle_between(stored, _stacked(rope, [(read.first_token, read.chunk.num_tokens) for read in reads]))
    return cos.to(dtype), sin.to(dtype)


def _stacked(rope: RopeTables, places: Sequence[tuple[int, int]]) -> Angles:
    tables = [rope.tables(first_token, num_tokens) for first_token, num_tokens in places]
    cos, sin = (torch.stack([table[i] for table in tables]).unsqueeze(1) for i in (0, 1))
    return cos, sin
