"""What the kernels read in every layer of a step: page lists, positions and correction factors, on the device.

They are made from integers of the plan and copied to the device once. Denoise steps of the same chunks over the same
history reuse them (`TableCache`), so that nothing within a step waits for the host or the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pagedvid.attention.dense.ragged import Ragged
from pagedvid.attention.rotation import are_shifted
from pagedvid.cache.plan import Read, StepPlan
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.errors import IntegrityError
from pagedvid.rotary.axis_tables import AxisTables
from pagedvid.rotary.tables import RopeTables

Made = TypeVar("Made")
KEPT_STEPS = 8
"""Sets of tables kept: enough for the conditional and unconditional steps of a few batches."""


@dataclass(frozen=True, eq=False)
class ReadGroup:
    """All reads of one step from chunks with the same codecs, range by range. S reads, L layers, H KV heads."""

    codecs: ChunkCodecs
    reads: tuple[Read, ...]
    ranges_of: tuple[int, ...]
    """The number of each read's range."""
    queries: tuple[slice, ...]
    """The packed tokens of each read's range."""
    pages: Tensor
    """int32: page ids of all chunks, one after the other."""
    segments: Tensor
    """int32 [L, S, 6]; see `PagedWork.segments`."""
    ranges: Tensor
    """int32 [E, 4], on the CPU; see `PagedWork.ranges`."""
    rotation: AxisTables | None
    """How keys stored before rotary embedding rotate, read by read."""
    shift: AxisTables | None
    """The same for keys stored after it; None: they do not rotate."""
    alpha: Tensor | None
    """float32 [L, S, H]; None: the chunks keep none."""
    variance: Tensor | None
    """Var k' - Var k, bfloat16 [L, S, H, D]; None: the chunks keep none."""
    sequences: tuple[Ragged, ...]
    """Each read as the one sequence of a dense call: the range's queries over the chunk's keys."""
    _work: list[Any] = field(default_factory=list, repr=False)

    def work(self, cut: Callable[[], Made]) -> Made:
        """What a kernel needs to know of the group in all layers; made by the first call."""
        if not self._work:
            self._work.append(cut())
        made: Made = self._work[0]
        return made

    def rotation_of(self, layer: int) -> AxisTables | None:
        """How a layer's keys rotate."""
        return _rotation_of(self.codecs, layer, self.rotation, self.shift)


def read_groups(plan: StepPlan, spec: CacheSpec, rope: RopeTables | None, device: torch.device) -> list[ReadGroup]:
    """One group for each combination of codecs that the step reads."""
    by_codecs: dict[ChunkCodecs, None] = dict.fromkeys(read.chunk.codecs for r in plan.ranges for read in r.reads)
    return [_read_group(plan, codecs, spec, rope, device) for codecs in by_codecs]


def _read_group(
    plan: StepPlan, codecs: ChunkCodecs, spec: CacheSpec, rope: RopeTables | None, device: torch.device
) -> ReadGroup:
    reads: list[Read] = []
    ranges_of: list[int] = []
    ranges = []
    for number, range_ in enumerate(plan.ranges):
        mine = [read for read in range_.reads if read.chunk.codecs == codecs]
        ranges.append((range_.start, range_.num_tokens, len(reads), len(reads) + len(mine)))
        reads += mine
        ranges_of += [number] * len(mine)
    rotation, shift = _rotation(reads, rope, device), _shift(codecs, reads, rope, device)
    chunks = list({read.chunk.id: read.chunk for read in reads}.values())
    first_page = dict(zip((c.id for c in chunks), accumulate([0, *(c.num_pages for c in chunks)]), strict=False))
    pages = torch.cat([chunk.table.on(device) for chunk in chunks])
    return ReadGroup(
        codecs,
        tuple(reads),
        tuple(ranges_of),
        tuple(slice(plan.ranges[number].start, plan.ranges[number].stop) for number in ranges_of),
        pages,
        torch.from_numpy(_segments(codecs, reads, first_page, spec, rotation, shift)).to(device),
        torch.tensor(ranges, dtype=torch.int32),
        rotation,
        shift,
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
    rotation: AxisTables | None,
    shift: AxisTables | None,
) -> np.ndarray[Any, Any]:
    """[L, S, 6] int32."""
    segments = np.zeros((spec.num_layers, len(reads), 6), dtype=np.int32)
    for number, read in enumerate(reads):
        starts, lengths = read.chunk.table.starts_and_lengths()
        segments[:, number, 0:4:2] = first_page[read.chunk.id] + starts.T
        segments[:, number, 1:4:2] = lengths.T
        segments[:, number, 4] = read.chunk.num_tokens
    for layer in range(spec.num_layers):
        if (layer_rotation := _rotation_of(codecs, layer, rotation, shift)) is not None:
            segments[layer, :, 5] = layer_rotation.frame_rows
    return segments


def _rotation_of(
    codecs: ChunkCodecs, layer: int, rotation: AxisTables | None, shift: AxisTables | None
) -> AxisTables | None:
    return shift if codecs.of("keys", layer).stores_rotated else rotation


def _rotation(reads: Sequence[Read], rope: RopeTables | None, device: torch.device) -> AxisTables | None:
    if rope is None or not reads:
        return None
    return AxisTables.of(rope, [(read.first_token, read.chunk.num_tokens) for read in reads]).to(device)


def _shift(
    codecs: ChunkCodecs, reads: Sequence[Read], rope: RopeTables | None, device: torch.device
) -> AxisTables | None:
    """Rotation from the chunks' stored to their current positions."""
    if rope is None or not are_shifted(codecs, reads):
        return None
    places = [(read.first_token, read.chunk.num_tokens) for read in reads]
    return AxisTables.shifted(rope, places, [read.chunk.position for read in reads]).to(device)


def _by_layer(kept: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    """What chunks keep, S tensors [L, ...] -> [L, S, ...]; None when they keep nothing."""
    given = [each.to(device) for each in kept if each is not None]
    if len(given) not in (0, len(kept)):
        raise IntegrityError(f"only {len(given)} of {len(kept)} chunks with the same codecs keep correction factors")
    return torch.stack(given, dim=1).contiguous() if given else None


class TableCache:
    """The tables of the last few steps, found by what they were made from."""

    def __init__(self) -> None:
        self._made: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()

    def find(self, plan: StepPlan, rope: RopeTables | None, more: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returned for the same ranges, chunks, `rope` object and `more`; calls it if that is not kept."""
        key = (plan_key(plan), id(rope), more)
        if key not in self._made:
            self._made[key] = (rope, make())  # keeping the rope alive keeps its id from being reused
            if len(self._made) > KEPT_STEPS:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        made: Made = self._made[key][1]
        return made


def plan_key(plan: StepPlan) -> Hashable:
    """Ranges, positions and chunks of a step. Chunk ids are never reused."""
    return tuple(
        (r.num_tokens, r.first_token, r.current, tuple((read.chunk.id, read.first_token) for read in r.reads))
        for r in plan.ranges
    )
