"""Rotation of one step's packed queries and keys by their positions.

Rotation happens where a few heads are gathered, never for all heads at once: a rotated copy of a step's queries and
keys would be as large as a chunk's keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pagedvid.cache.plan import PendingChunk, RangePlan, StepPlan
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.heads import HeadIndex
from pagedvid.rotary.checked import CheckedRope, Ropes
from pagedvid.rotary.tables import Arrival, RopeTables, rotate, to_half_layout, unrotate

CosSin = tuple[Tensor, Tensor]
"""Cosines and sines, float32."""


@dataclass(frozen=True)
class Readers:
    """Sampled queries of a commit pass as readers of a chunk that it stores; [S, h, D], rotated, in half layout."""

    here_SHD: Tensor
    """Rotated to their positions in this pass."""
    reading_SHD: Tensor
    """Rotated to the positions from which they read the chunk."""
    position: int
    """Position of the first token of their own chunk in this pass."""
    own_tokens: Tensor | None
    """For each query, its own token in the stored chunk, int64 [S], which is left out: no later reader has one there.
    None for a chunk of an earlier pass, and for a chunk of one token."""

    def of_heads(self, queries: HeadIndex) -> Readers:
        """The queries of some query heads."""
        return replace(self, here_SHD=self.here_SHD[:, queries], reading_SHD=self.reading_SHD[:, queries])


@dataclass(frozen=True)
class Rotation:
    """The rotary tables of a step; axes T packed tokens, h heads, D head_dim."""

    rope: CheckedRope | None
    arrive_rotated: bool
    cos: Tensor | None = None
    """float32 [T, 1, D/2] of all packed tokens; None without rotary embedding."""
    sin: Tensor | None = None
    stored_by: RopeTables | None = None
    """The same rope with tables on the step's device."""
    _angles: dict[tuple[int, int], CosSin] = field(default_factory=dict, repr=False)
    """Looked up once for all layers."""

    @staticmethod
    def of(plan: StepPlan, spec: CacheSpec, rope: RopeTables | None, ropes: Ropes) -> Rotation:
        """The tables of all ranges. Raises ShapeError when they do not fit head_dim or the ranges."""
        arrive_rotated = spec.keys_arrive == "rotated"
        if rope is None:
            return Rotation(None, arrive_rotated)
        stored_by = ropes.on_device(rope)
        tables = [stored_by.tables(range_.first_token, range_.num_tokens) for range_ in plan.ranges]
        cos, sin = (torch.cat([table[i] for table in tables]).unsqueeze(1) for i in (0, 1))
        return Rotation(ropes.checked(rope), arrive_rotated, cos, sin, stored_by)

    def rotated(self, x_ThD: Tensor, tokens: Tensor) -> Tensor:
        """Packed `tokens` [...] of the model's queries or keys, rotated, in half layout: [..., h, D]."""
        x = x_ThD[tokens]
        if self.rope is None or self.cos is None or self.sin is None:
            return x
        x = to_half_layout(x, self.rope.layout)
        if self.arrive_rotated:
            return x
        return rotate(x.float(), self.cos[tokens], self.sin[tokens]).to(x.dtype)

    def as_reading(self, q_ThD: Tensor, tokens: Tensor, range_: RangePlan, pending: PendingChunk) -> Readers:
        """Queries of packed `tokens`, int64 [S], of a range: they stand for those that will read the pending chunk.

        A chunk that only changes its codec is read by these very queries. The range's own chunk is first read by the
        next chunk, so the queries are rotated one chunk ahead.
        """
        here = self.rotated(q_ThD, tokens)
        if pending.source is not None:
            return Readers(here, here, range_.first_token, None)
        offsets = tokens - range_.start
        reading = here if self.rope is None else self._one_chunk_ahead(q_ThD, tokens, offsets, range_)
        return Readers(here, reading, range_.first_token, offsets if range_.num_tokens > 1 else None)

    def _one_chunk_ahead(self, q_ThD: Tensor, tokens: Tensor, offsets: Tensor, range_: RangePlan) -> Tensor:
        assert self.rope is not None and self.cos is not None and self.sin is not None
        q = to_half_layout(q_ThD[tokens], self.rope.layout).float()
        if self.arrive_rotated:
            q = unrotate(q, self.cos[tokens], self.sin[tokens])
        ahead = self.angles(range_.first_token + range_.num_tokens, range_.num_tokens)
        assert ahead is not None
        cos, sin = (table[offsets].unsqueeze(1) for table in ahead)
        return rotate(q, cos, sin).to(q_ThD.dtype)

    def angles(self, position: int, num_tokens: int) -> CosSin | None:
        """(cos, sin), float32 [n, D/2], of consecutive positions; None without rotary embedding."""
        if self.stored_by is None:
            return None
        key = (position, num_tokens)
        if key not in self._angles:
            self._angles[key] = self.stored_by.tables(position, num_tokens)
        return self._angles[key]

    def at(self, k_HnD: Tensor, position: int) -> Tensor:
        """Half-layout keys [H, n, D] rotated to consecutive positions."""
        angles = self.angles(position, k_HnD.shape[1])
        return k_HnD if angles is None else rotate(k_HnD, *angles)

    def in_page_order(self, x: Tensor) -> Tensor:
        """Queries or keys [..., D] in the channel order of the pages, not rotated."""
        return x if self.rope is None else to_half_layout(x, self.rope.layout)

    def arrival(self, tokens: slice) -> Arrival:
        """Layout and rotation in which consecutive packed keys arrive from the model."""
        if self.rope is None or self.cos is None or self.sin is None:
            return Arrival()
        rotated_by = (self.cos[tokens, 0], self.sin[tokens, 0]) if self.arrive_rotated else None
        return Arrival(self.rope.layout, rotated_by)
