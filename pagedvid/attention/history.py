"""How a step attends, the same on every device: queries and current keys are arranged, history is decoded, a dense
library makes partials, and one pass corrects and merges them.

    arrange     queries and current keys as they meet history               rotary/
    decode      pages -> keys and values in one reused buffer               codecs/
    dense       a partial over `own`, and one over every corrected chunk    dense/
    merge       all partials, lse - alpha * b                               merge.py

Here keys and queries rotate by their positions; projected_step.py maps them by cameras instead.

Axes: E ranges of a batch, J columns, T queries, n keys, h KV heads of a tile, q their query heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pagedvid.attention.batches import Batch, Column
from pagedvid.attention.dense.base import DenseAttention, Fp8Attention
from pagedvid.attention.layer_reads import ReadPlanner
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.scratch import Scratch
from pagedvid.attention.tiles import Group, Piece, Round, Tile, by_range
from pagedvid.codecs.assignment import CodecPair
from pagedvid.rotary.angles import Angles

Context = Sequence[tuple[Tensor, Tensor] | None]
"""For each range of a step its context keys and values, [n, H, D] each, or None; empty when no range has any."""
FP8_LARGEST = torch.finfo(torch.float8_e4m3fn).max
SMALLEST = torch.finfo(torch.float32).tiny
Partial = tuple[Tensor, Tensor]
"""(out, lse) over some of the keys."""


@dataclass(frozen=True)
class Tools:
    """What the steps of a cache share."""

    planner: ReadPlanner
    scratch: Scratch
    arrange: Callable[..., None]
    """`rotary.tables.arrange` or its kernel."""
    merge: Callable[..., None]
    """`merge.merge` or its kernel."""
    history_dtype: str
    """"bf16", "fp8" or "auto"; see `PagedKVCache`."""


@dataclass(frozen=True, eq=False)
class PreparedStep:
    """A step ready for all layers; kept for the denoise steps of the same chunks."""

    tools: Tools
    dense: DenseAttention
    fp8_dense: Fp8Attention | None
    """For history in 8-bit floats; None: there is none."""
    dtype: torch.dtype
    batches: Sequence[Batch]
    rotation: Rotation
    """Of the step's own tokens and, by its rope, of its history."""
    keeps_values = True
    """Whether values are read as they are."""
    pulls_queries = False
    """Whether b of every part needs queries of its own, pulled back to its frame."""
    _tiles: dict[int, list[list[Tile]]] = field(default_factory=dict, repr=False)
    _angles: dict[Any, Angles] = field(default_factory=dict, repr=False)
    """Of some columns, the same for all layers."""
    _fp8_scales: dict[Group, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _buffers: dict[tuple[str, tuple[int, ...], bool], Tensor] = field(default_factory=dict, repr=False)
    """Of the scratch; held here, so that they outlive a growth of the scratch under a captured CUDA graph."""

    def attend(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, context: Context = ()) -> Tensor:
        """Each range's attention over its visible chunks, corrected, and current and context keys: [T, Hq, D] like q.

        q, k and v are the model's. Modifies neither its inputs nor any page.
        """
        tiles = self._tiles.get(layer)
        if tiles is None:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                tiles = self._tiles[layer] = [
                    self.tools.planner.tiles(batch, layer, self, q_THD.dtype) for batch in self.batches
                ]
        given, first = (q_THD, k_THD, v_THD, context), tiles[0][0]
        is_whole = len(tiles) == len(tiles[0]) == 1 and isinstance(self.batches[0].queries.rows, slice)
        if is_whole and not first.rounds:
            return _Attending.of(self, self.batches[0], first, *given).attend(None).flatten(0, 1).contiguous()
        out_THD = q_THD.new_empty(q_THD.shape)
        for batch, in_batch in zip(self.batches, tiles, strict=True):
            rows = batch.queries.rows
            of_batch_TqD = out_THD[rows]  # a view, or else a copy, into which the tiles write first
            for tile in in_batch:
                place = of_batch_TqD[:, tile.queries].unflatten(0, (batch.num_ranges, -1))
                made = _Attending.of(self, batch, tile, *given).attend(place if tile.rounds else None)
                if made is not place or not isinstance(tile.queries, slice):
                    of_batch_TqD[:, tile.queries] = made.flatten(0, 1)
            if not isinstance(rows, slice):
                out_THD[rows] = of_batch_TqD
        return out_THD

    # ------------------------------------------------------------------ the form in which queries meet keys

    @property
    def has_rope(self) -> bool:
        """Whether keys that are stored before rotary embedding are rotated."""
        return self.rotation.rope is not None

    def angles(self, columns: Sequence[Column], *, stored_rotated: bool) -> Angles | None:
        """The angles by which the keys of all chunks rotate, range by range; None: they do not.

        Keys that were rotated before storage are re-rotated to the positions at which they are read.
        """
        reads, rope = by_range(columns), self.rotation.stored_by
        is_in_place = stored_rotated and all(read.first_token == read.chunk.position for read in reads)
        if rope is None or is_in_place:
            return None
        key = (tuple(columns), stored_rotated)
        if key not in self._angles:
            where = self.dtype, self.tools.planner.pool.device
            places = [(read.first_token, read.chunk.num_tokens) for read in reads]
            positions = [read.chunk.position for read in reads]
            self._angles[key] = (
                Angles.shifted(rope, places, positions, *where) if stored_rotated else Angles.of(rope, places, *where)
            )
        return self._angles[key]

    def part_tokens(self, column: Column, layer: int) -> tuple[int, ...]:
        """The tokens of the parts of a corrected chunk that have a b of their own: the chunk, or its runs of pages
        where the correction's unit is the page."""
        return column.reads[0].chunk.runs.get(layer, (column.num_tokens,))

    def arrange(
        self,
        batch: Batch,
        q_TqD: Tensor,
        k_ThD: Tensor,
        v_ThD: Tensor,
        q_ETqD: Tensor,
        keys_EnhD: Tensor,
        values_EnhD: Tensor | None,
    ) -> None:
        """Writes the batch's queries and the keys of its current runs, all rotated, and the values of these runs.

        From the tile's heads of all packed tokens, q [T, q, D], k and v [T, h, D], into [E, T, q, D] and [E, n, h, D],
        where n tokens are those of one run after the other. `values_EnhD`: None where they are not wanted.
        """
        layout = "half" if self.rotation.rope is None else self.rotation.rope.layout
        first = 0
        for run in batch.current:
            places = slice(first, first + run.num_tokens)
            values = None if values_EnhD is None else values_EnhD[:, places]
            q, q_out = (q_TqD, q_ETqD) if run is batch.queries else (None, None)
            self.tools.arrange(
                q, k_ThD, v_ThD, run.starts, run.num_tokens, layout, self._packed_angles, q_out, keys_EnhD[:, places],
                values,
            )  # fmt: skip
            first = places.stop

    @cached_property
    def _packed_angles(self) -> tuple[Tensor, Tensor] | None:
        """(cos, sin) [T, D/2] of all packed tokens; None: queries and keys arrive rotated, or have no positions."""
        rotation = self.rotation
        if rotation.cos is None or rotation.sin is None or rotation.arrive_rotated:
            return None
        return rotation.cos[:, 0], rotation.sin[:, 0]

    def context_keys(self, batch: Batch, k_EnhD: Tensor, v_EnhD: Tensor) -> tuple[Tensor, Tensor]:
        """Context keys and values, [E, n, h, D] each, as they meet queries: in page order, not rotated."""
        return self.rotation.in_page_order(k_EnhD), v_EnhD

    def takes_fp8(self, codecs: CodecPair) -> bool:
        """Whether pages of these codecs are decoded to 8-bit floats."""
        both = codecs.keys, codecs.values
        if self.fp8_dense is None or not all(codec.is_quantized for codec in both):
            return False
        return self.tools.history_dtype == "fp8" or all(codec.survives_fp8 for codec in both)

    def read(
        self,
        batch: Batch,
        piece: Piece,
        keys_EJnhD: Tensor,
        values_EJnhD: Tensor,
        inverse_scales: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        """Decodes a piece of history into [E, J, n, h, D] each, with room for whole pages in n; keys are rotated.

        `inverse_scales` [S, h]: of keys and values in 8 bits.
        """
        records, num_tokens = self.tools.planner.pool.records, piece.num_tokens
        both = zip((piece.keys, piece.values), (keys_EJnhD, values_EJnhD), inverse_scales, strict=True)
        for decodings, out, scales in both:
            for each in decodings:
                each.kernels.decode_heads(records, each.pages_ShP, num_tokens, out, each.heads, each.angles, scales)

    def read_group(self, batch: Batch, group: Group, scales: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Keys and values of a group's chunks, [E, J, n, h, D]. `scales` [E, J, h]: of keys and values in 8 bits."""
        num_heads, head_dim = group.pieces[0].num_heads, self.tools.planner.spec.head_dim
        shape = (batch.num_ranges, group.num_columns, group.room_tokens, num_heads, head_dim)
        keys, values = (self.buffer(name, shape, is_fp8=scales is not None) for name in ("keys", "values"))
        for piece in group.pieces:
            first = piece.first_token // piece.num_tokens
            columns = slice(first, first + len(piece.columns))
            places = keys[:, columns], values[:, columns]
            if scales is None:
                self.read(batch, piece, *places)
            else:
                inverse = [(1 / each[:, columns]).flatten(0, 1) for each in scales]
                self.read(batch, piece, *places, (inverse[0], inverse[1]))
        return keys, values

    def fp8_scales(self, batch: Batch, group: Group) -> tuple[Tensor, Tensor]:
        """What keys and values of each chunk and head are divided by to fit 8-bit floats, float32 [E, J, h].

        Found once for all denoise steps, from the chunks as they are decoded in the model's dtype.
        """
        if group not in self._fp8_scales:
            tokens = (x[:, :, : group.num_tokens].float() for x in self.read_group(batch, group, None))
            largest = [x.abs().amax((2, 4)).clamp(min=SMALLEST) / FP8_LARGEST for x in tokens]
            self._fp8_scales[group] = largest[0], largest[1]
        return self._fp8_scales[group]

    def bias_queries(self, batch: Batch, round_: Round, q_TqD: Tensor, q_ETqD: Tensor) -> Tensor:
        """The query variants that b needs, [E, V, T, q, D], from the model's queries and from the arranged ones.

        Rotation does not change b: keys that rotate after storage take mean squares of pairs.
        """
        if len(round_.variants) == 1 and round_.variants[0].axes is None:
            return q_ETqD.unsqueeze(1)
        along = [q_ETqD.float() if each.axes is None else q_ETqD.float() @ each.axes.T for each in round_.variants]
        return torch.stack(along, dim=1)

    def result(self, batch: Batch, out_ETqD: Tensor) -> Tensor:
        """Attention outputs [E, T, q, D] as the model expects them: here as they are."""
        return out_ETqD

    def buffer(self, name: str, shape: tuple[int, ...], *, is_fp8: bool = False) -> Tensor:
        """Of the scratch, for tokens [..., n, heads, D] in the model's dtype or in 8-bit floats."""
        key = (name, shape, is_fp8)
        if key not in self._buffers:
            dtype, provider = (torch.float8_e4m3fn, self.fp8_dense) if is_fp8 else (self.dtype, self.dense)
            is_head_major = provider is not None and provider.head_major
            self._buffers[key] = self.tools.scratch.tokens(name, shape, dtype, head_major=is_head_major)
        return self._buffers[key]


@dataclass(frozen=True, eq=False)
class _Attending:
    """One tile of one batch in one call."""

    step: PreparedStep
    batch: Batch
    tile: Tile
    q_TqD: Tensor
    k_ThD: Tensor
    v_ThD: Tensor
    context: Context

    @staticmethod
    def of(
        step: PreparedStep, batch: Batch, tile: Tile, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, context: Context
    ) -> _Attending:
        """With the tile's heads of the packed queries, keys and values."""
        heads, queries = tile.index, tile.queries
        return _Attending(step, batch, tile, q_THD[:, queries], k_THD[:, heads], v_THD[:, heads], context)

    def attend(self, out_ETqD: Tensor | None) -> Tensor:
        """The outputs [E, T, q, D]; where partials are merged, in `out_ETqD`."""
        step, batch, tile, scale = self.step, self.batch, self.tile, self.step.tools.planner.spec.scale
        q_ETqD = step.buffer("queries", (batch.num_ranges, batch.queries.num_tokens, *self.q_TqD.shape[1:]))
        own = step.dense(q_ETqD, *self._own_keys(q_ETqD), scale)
        if out_ETqD is None:
            return step.result(batch, own[0])
        for number, round_ in enumerate(tile.rounds, start=1):
            others = [partial for group in round_.groups for partial in self._partials(group, q_ETqD, scale)]
            bias_queries = None if round_.bias is None else step.bias_queries(batch, round_, self.q_TqD, q_ETqD)
            lse_ETq = None if number == len(tile.rounds) else own[1].new_empty(own[1].shape)
            step.tools.merge(
                own, others, out_ETqD, bias=round_.bias, q_EVTHD=bias_queries, scale=scale, lse_ETH=lse_ETq
            )
            own = out_ETqD, own[1] if lse_ETq is None else lse_ETq
        return step.result(batch, own[0])

    def _own_keys(self, q_ETqD: Tensor) -> Partial:
        """Keys and values of the sequence that needs no correction, [E, n, h, D]; also arranges the queries."""
        step, batch, tile = self.step, self.batch, self.tile
        given = self.q_TqD, self.k_ThD, self.v_ThD, q_ETqD
        shape = (batch.num_ranges, batch.num_current_tokens + tile.own_history_tokens, *self.k_ThD.shape[1:])
        keys = step.buffer("keys", shape)
        if shape[1] == batch.queries.num_tokens and step.keeps_values:  # the current chunk alone
            step.arrange(batch, *given, keys, None)
            return keys, self.v_ThD[batch.queries.rows].unflatten(0, (batch.num_ranges, -1))
        values, first, end = step.buffer("values", shape), batch.context_tokens, batch.num_current_tokens
        step.arrange(batch, *given, keys[:, first:end], values[:, first:end])
        if first:
            pairs = [pair for number in batch.numbers if (pair := self.context[number]) is not None]
            stacked = (torch.stack([pair[i][:, tile.index] for pair in pairs]) for i in (0, 1))
            keys[:, :first], values[:, :first] = step.context_keys(batch, *stacked)
        for piece in tile.own:
            num_columns, first = len(piece.columns), end + piece.first_token
            last = first + num_columns * piece.num_tokens
            k, v = (x[:, first:last].unflatten(1, (num_columns, -1)) for x in (keys, values))
            step.read(batch, piece, k, v)
        return keys, values

    def _partials(self, group: Group, q_ETqD: Tensor, scale: float) -> list[Partial]:
        """Over every chunk of a group, part by part: out [E, J, T, q, D], lse [E, J, T, q]."""
        step, num_ranges, num_columns = self.step, self.batch.num_ranges, group.num_columns
        scales = step.fp8_scales(self.batch, group) if group.is_fp8 else None
        keys, values = step.read_group(self.batch, group, scales)
        queries = q_ETqD.unsqueeze(1).expand(-1, num_columns, -1, -1, -1).flatten(0, 1)  # a view of a single range
        partials = []
        for part in group.parts:
            k, v = (x[:, :, part].flatten(0, 1) for x in (keys, values))
            if step.fp8_dense is None or scales is None:
                out, lse = step.dense(queries, k, v, scale)
            else:
                out, lse = step.fp8_dense(queries, k, v, scale, *(each.flatten(0, 1) for each in scales))
            partials.append((out.unflatten(0, (num_ranges, -1)), lse.unflatten(0, (num_ranges, -1))))
        return partials
