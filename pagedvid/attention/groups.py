"""How a step's ranges and chunks are grouped into batched attention calls.

Ranges of equal length form batches; inside a batch, the j-th source of every range (its own current keys first, then
the chunks it reads) is one batched call wherever shapes agree:

    range   current   read 0    read 1    read 2              call 0: a b c  current keys
      a     [a]       int8 128  int2 128  int2 128            call 1: a b c  int8, 128 tokens
      b     [b]       int8 128  int2 128                      call 2: a b    int2, 128 tokens
      c     [c]       int8 128                                call 3: a      int2, 128 tokens

so 16 small streams need as many calls as one, and one large stream is split by heads instead (torch_backend.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from pagedvid.cache.plan import RangePlan, Read, StepPlan
from pagedvid.geometry import page_tokens, pages_for_tokens
from pagedvid.quant.rotary import RopeTables


@dataclass
class CurrentSource:
    """Current keys of this step, one stretch per range; never corrected."""

    rows: Tensor
    """Which ranges of the batch, int64 [E]."""
    tokens: Tensor
    """Their packed token indices, int64 [E, n]."""


@dataclass
class PagedSource:
    """One committed chunk per range, all of one codec and length."""

    rows: Tensor
    reads: tuple[Read, ...]
    codec: str
    num_tokens: int
    cos: Tensor | None
    """Rotary tables where the chunks lie in this step, [E, 1, n, D/2]; None without rotary embedding."""
    sin: Tensor | None

    @property
    def padded_tokens(self) -> int:
        """Tokens of whole pages."""
        return pages_for_tokens(self.num_tokens, self.codec) * page_tokens(self.codec)


@dataclass
class RangeBatch:
    """Ranges of equal length that are attended together."""

    tokens: Tensor
    """Packed token indices, int64 [E, T]."""
    sources: list[CurrentSource | PagedSource]


def group_ranges(
    plan: StepPlan, rope: RopeTables | None, dtype: torch.dtype, ranges_per_batch: Callable[[RangePlan], int]
) -> list[RangeBatch]:
    """All batches of a step. `ranges_per_batch`: how many ranges like this one fit in the scratch together."""
    by_length: dict[int, list[RangePlan]] = {}
    for range_ in plan.ranges:
        by_length.setdefault(range_.num_tokens, []).append(range_)
    batches = []
    for ranges in by_length.values():
        size = max(1, min(ranges_per_batch(range_) for range_ in ranges))
        batches += [_batch(plan, ranges[i : i + size], rope, dtype) for i in range(0, len(ranges), size)]
    return batches


def _batch(plan: StepPlan, ranges: Sequence[RangePlan], rope: RopeTables | None, dtype: torch.dtype) -> RangeBatch:
    tokens = torch.stack([torch.arange(range_.start, range_.stop) for range_ in ranges])
    return RangeBatch(tokens, [*_current_sources(plan, ranges), *_paged_sources(ranges, rope, dtype)])


def _current_sources(plan: StepPlan, ranges: Sequence[RangePlan]) -> list[CurrentSource | PagedSource]:
    sources: list[CurrentSource | PagedSource] = []
    for column in zip_longest(*(reversed(range_.current) for range_ in ranges)):  # its own range comes first
        by_length: dict[int, list[tuple[int, RangePlan]]] = {}
        for row, number in enumerate(column):
            if number is not None:
                seen = plan.ranges[number]
                by_length.setdefault(seen.num_tokens, []).append((row, seen))
        for pairs in by_length.values():
            rows = torch.tensor([row for row, _ in pairs])
            sources.append(CurrentSource(rows, torch.stack([torch.arange(seen.start, seen.stop) for _, seen in pairs])))
    return sources


def _paged_sources(
    ranges: Sequence[RangePlan], rope: RopeTables | None, dtype: torch.dtype
) -> list[CurrentSource | PagedSource]:
    sources: list[CurrentSource | PagedSource] = []
    for column in zip_longest(*(range_.reads for range_ in ranges)):
        by_shape: dict[tuple[str, int], list[tuple[int, Read]]] = {}
        for row, read in enumerate(column):
            if read is not None:
                by_shape.setdefault((read.chunk.codec, read.chunk.num_tokens), []).append((row, read))
        for (codec, num_tokens), pairs in by_shape.items():
            reads = tuple(read for _, read in pairs)
            cos, sin = _stacked_tables(reads, rope, dtype)
            sources.append(PagedSource(torch.tensor([row for row, _ in pairs]), reads, codec, num_tokens, cos, sin))
    return sources


def _stacked_tables(
    reads: Sequence[Read], rope: RopeTables | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    if rope is None:
        return None, None
    tables = [rope.tables(read.first_token, read.chunk.num_tokens) for read in reads]
    return tuple(torch.stack([table[i] for table in tables]).unsqueeze(1).to(dtype) for i in (0, 1))  # type: ignore[return-value]
