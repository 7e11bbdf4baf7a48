"""What the kernels read in every layer of a step: page lists, positions and correction factors, on the device.

They are made from integers of the plan and copied to the device once; denoise steps of the same chunks over the same
history find them again (`TableCache`), so that within a step nothing waits for the host or for the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pagedvid.attention.dense.ragged import Ragged
from pagedvid.cache.plan import Read, StepPlan
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import KINDS, ChunkCodecs
from pagedvid.codecs.page import read_codec
from pagedvid.errors import IntegrityError
from pagedvid.rotary.axis_tables import AxisTables
from pagedvid.rotary.tables import RopeTables

Made = TypeVar("Made")
KEPT_STEPS = 8
"""Sets of tables kept: the conditional and unconditional steps of a few batches."""


@dataclass(frozen=True, eq=False)
class History:
    """All reads of chunks of the same codecs in one step, range by range. S reads, L layers, H KV heads."""

    codecs: ChunkCodecs
    reads: tuple[Read, ...]
    ranges_of: tuple[int, ...]
    """The number of each read's range."""
    queries: tuple[slice, ...]
    """The packed tokens of each read's range."""
    pages: Tensor
    """int32: page ids of all chunks, one after the other."""
    first_page: tuple[int, ...]
    """Where those of each read begin."""
    segments: Tensor
    """int32 [L, S, 6]; see `PagedWork.segments`."""
    ranges: Tensor
    """int32 [E, 4], on the CPU; see `PagedWork.ranges`."""
    turning: AxisTables | None
    """How keys stored before rotary embedding turn, read by read."""
    moving: AxisTables | None
    """The same for keys stored after it; None: they do not turn."""
    alpha: Tensor | None
    """[L, S, H]."""
    variance: Tensor | None
    """[L, S, H, D]."""

    sequences: tuple[Ragged, ...]
    """Each read as the one sequence of a dense call: the range's queries over the chunk's keys."""

    def pages_of(self, number: int, kind: str, layer: int) -> Tensor:
        """Pages of the "keys" or "values" of one read, int32 [H, P] on the device."""
        num_layers, indptr = len(self.segments), self.reads[number].chunk.indptr
        num_kv_heads = (len(indptr) - 1) // (len(KINDS) * num_layers)
        table = (KINDS.index(kind) * num_layers + layer) * num_kv_heads
        first, last = (self.first_page[number] + int(indptr[table + heads]) for heads in (0, num_kv_heads))
        return self.pages[first:last].view(num_kv_heads, -1)

    def turning_of(self, layer: int) -> AxisTables | None:
        """How a layer's keys turn."""
        return _turning_of(self.codecs, layer, self.turning, self.moving)


def histories(plan: StepPlan, spec: CacheSpec, rope: RopeTables | None, device: torch.device) -> list[History]:
    """One for each combination of codecs that the step reads."""
    by_codecs: dict[ChunkCodecs, None] = dict.fromkeys(read.chunk.codecs for r in plan.ranges for read in r.reads)
    return [_history(plan, codecs, spec, rope, device) for codecs in by_codecs]


def _history(
    plan: StepPlan, codecs: ChunkCodecs, spec: CacheSpec, rope: RopeTables | None, device: torch.device
) -> History:
    reads: list[Read] = []
    ranges_of: list[int] = []
    ranges = []
    for number, range_ in enumerate(plan.ranges):
        mine = [read for read in range_.reads if read.chunk.codecs == codecs]
        ranges.append((range_.start, range_.num_tokens, len(reads), len(reads) + len(mine)))
        reads += mine
        ranges_of += [number] * len(mine)
    turning, moving = _turning(reads, rope, device), _moving(codecs, reads, rope, device)
    chunks = list({read.chunk.id: read.chunk for read in reads}.values())
    first_page = dict(zip((c.id for c in chunks), accumulate([0, *(c.num_pages for c in chunks)]), strict=False))
    pages = torch.from_numpy(np.concatenate([chunk.pages for chunk in chunks])).to(device, torch.int32)
    return History(
        codecs,
        tuple(reads),
        tuple(ranges_of),
        tuple(slice(plan.ranges[number].start, plan.ranges[number].stop) for number in ranges_of),
        pages,
        tuple(int(first_page[read.chunk.id]) for read in reads),
        torch.from_numpy(_segments(codecs, reads, first_page, spec, turning, moving)).to(device),
        torch.tensor(ranges, dtype=torch.int32),
        turning,
        moving,
        _by_layer([read.chunk.alpha for read in reads], device),
        _by_layer([read.chunk.variance for read in reads], device),
        tuple(
            Ragged.of([plan.ranges[number].num_tokens], [read.chunk.num_tokens], device)
            for read, number in zip(reads, ranges_of, strict=True)
        ),
    )


def _segments(
    codecs: ChunkCodecs,
    reads: Sequence[Read],
    first_page: Mapping[int, int],
    spec: CacheSpec,
    turning: AxisTables | None,
    moving: AxisTables | None,
) -> np.ndarray[Any, Any]:
    """[L, S, 6] int32."""
    segments = np.zeros((spec.num_layers, len(reads), 6), dtype=np.int32)
    for number, read in enumerate(reads):
        starts = read.chunk.indptr[:-1].reshape(len(KINDS), spec.num_layers, spec.num_kv_heads)[..., 0]
        lengths = np.diff(read.chunk.indptr).reshape(len(KINDS), spec.num_layers, spec.num_kv_heads)[..., 0]
        for kind in range(len(KINDS)):
            segments[:, number, 2 * kind] = first_page[read.chunk.id] + starts[kind]
            segments[:, number, 2 * kind + 1] = lengths[kind]
        segments[:, number, 4] = read.chunk.num_tokens
    for layer in range(spec.num_layers):
        if (layer_turning := _turning_of(codecs, layer, turning, moving)) is not None:
            segments[layer, :, 5] = layer_turning.frame_rows
    return segments


def _turning_of(
    codecs: ChunkCodecs, layer: int, turning: AxisTables | None, moving: AxisTables | None
) -> AxisTables | None:
    return moving if read_codec(codecs.of("keys", layer)).stores_rotated else turning


def _turning(reads: Sequence[Read], rope: RopeTables | None, device: torch.device) -> AxisTables | None:
    if rope is None or not reads:
        return None
    return AxisTables.of(rope, [(read.first_token, read.chunk.num_tokens) for read in reads]).to(device)


def _moving(
    codecs: ChunkCodecs, reads: Sequence[Read], rope: RopeTables | None, device: torch.device
) -> AxisTables | None:
    """By the difference to where the chunks lay when they were stored."""
    names = {codecs.keys, *(written.partition("/")[0] for _, _, written in codecs.layers)}
    has_rotated = any(read_codec(name).stores_rotated for name in names)
    if rope is None or not has_rotated or all(read.first_token == read.chunk.position for read in reads):
        return None
    places = [(read.first_token, read.chunk.num_tokens) for read in reads]
    return AxisTables.moved(rope, places, [read.chunk.position for read in reads]).to(device)


def _by_layer(kept: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    """What chunks keep, [S][L, ...] -> [L, S, ...]; None when they keep nothing."""
    given = [each.to(device) for each in kept if each is not None]
    if len(given) not in (0, len(kept)):
        raise IntegrityError(f"of {len(kept)} chunks of the same codecs only {len(given)} keep correction factors")
    return torch.stack(given, dim=1).contiguous() if given else None


class TableCache:
    """The tables of the last few steps, by what they were made from."""

    def __init__(self) -> None:
        self._made: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()

    def find(self, plan: StepPlan, rope: RopeTables | None, more: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` made for the same ranges over the same chunks and the very same `rope`, or makes it now."""
        key = (plan_key(plan), id(rope), more)
        if key not in self._made:
            self._made[key] = (rope, make())  # holding the tables' maker keeps its id from being given to another
            if len(self._made) > KEPT_STEPS:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        made: Made = self._made[key][1]
        return made


def plan_key(plan: StepPlan) -> Hashable:
    """Ranges, positions and chunks of a step. Chunk ids are never given twice."""
    return tuple(
        (r.num_tokens, r.first_token, r.current, tuple((read.chunk.id, read.first_token) for read in r.reads))
        for r in plan.ranges
    )
