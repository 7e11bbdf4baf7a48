"""How a step attends, the same on every device: queries and current keys are arranged, history is decoded, a dense
library makes partials, and one pass corrects and merges them.

    arrange     queries and current keys as they meet history               view
    decode      pages -> keys and values in one reused buffer               codec
    dense       a partial over `own`, and one over every corrected chunk    dense/
    merge       all partials, lse - alpha * b                               merge.py

Axes: E ranges of a batch, J columns, T queries, n keys, h KV heads of a tile, q their query heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pagedvid.attention.batches import Batch
from pagedvid.attention.dense.base import DenseAttention
from pagedvid.attention.layer_reads import Group, HistoryView, Piece, ReadPlanner, Tile
from pagedvid.attention.scratch import Scratch

Context = Sequence[tuple[Tensor, Tensor] | None]
"""For each range of a step its context keys and values, [n, H, D] each, or None; empty when no range has any."""
Partial = tuple[Tensor, Tensor]
"""(out, lse) over some of the keys."""


class View(HistoryView, Protocol):
    """The form in which queries meet keys: rotated by their positions, or mapped by cameras."""

    keeps_values: bool
    """Whether values are read as they are."""

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
        """Writes the batch's queries, and keys and values of its current runs, one after the other.

        `values_EnhD` is None where they are not wanted.
        """
        ...

    def context(self, batch: Batch, k_EnhD: Tensor, v_EnhD: Tensor) -> Partial:
        """Context keys and values, which have no positions."""
        ...

    def read(self, batch: Batch, piece: Piece, records: Tensor, keys_EJnhD: Tensor, values_EJnhD: Tensor) -> None:
        """Decodes a piece."""
        ...

    def bias_queries(self, batch: Batch, tile: Tile, q_TqD: Tensor, q_ETqD: Tensor) -> Tensor:
        """The variants of the queries that b takes, [E, V, T, q, D], from those given and those that meet keys."""
        ...

    def result(self, batch: Batch, out_ETqD: Tensor) -> Tensor:
        """The outputs as the model expects them."""
        ...


@dataclass(frozen=True, eq=False)
class PreparedStep:
    """A step in one view, ready for all layers; kept for the denoise steps of the same chunks."""

    planner: ReadPlanner
    scratch: Scratch
    dense: DenseAttention
    merge: Callable[..., None]
    """`merge.merge` or its kernel."""
    view: View
    batches: Sequence[Batch]
    _tiles: dict[int, list[list[Tile]]] = field(default_factory=dict, repr=False)
    _buffers: dict[tuple[str, tuple[int, ...]], Tensor] = field(default_factory=dict, repr=False)
    """Of the scratch; held here, so that they outlive a growth of the scratch under a captured CUDA graph."""

    def attend(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, context: Context = ()) -> Tensor:
        """Each range's attention over its visible chunks, corrected, and current and context keys: [T, Hq, D] like q.

        q, k and v are the model's. Modifies neither its inputs nor any page.
        """
        tiles = self._tiles.get(layer)
        if tiles is None:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                tiles = self._tiles[layer] = [
                    self.planner.tiles(batch, layer, self.view, q_THD.dtype) for batch in self.batches
                ]
        group, is_whole = q_THD.shape[1] // k_THD.shape[1], len(tiles) == len(tiles[0]) == 1
        out_THD: Tensor | None = None
        for batch, in_batch in zip(self.batches, tiles, strict=True):
            for tile in in_batch:
                queries = slice(tile.heads.start * group, tile.heads.stop * group)
                part = _Attending(self, batch, tile, q_THD[:, queries], k_THD[:, tile.heads], v_THD[:, tile.heads])
                if is_whole and not tile.groups and isinstance(batch.queries.rows, slice):
                    return part.attend(context, None).flatten(0, 1).contiguous()
                if out_THD is None:
                    out_THD = torch.empty_like(q_THD)
                place = batch.queries.of_packed(out_THD[:, queries])
                made = part.attend(context, place)
                if made is not place or not isinstance(batch.queries.rows, slice):
                    out_THD[batch.queries.rows, queries] = made.flatten(0, 1)
        assert out_THD is not None
        return out_THD


@dataclass(frozen=True, eq=False)
class _Attending:
    """One tile of one batch in one call."""

    step: PreparedStep
    batch: Batch
    tile: Tile
    q_TqD: Tensor
    k_ThD: Tensor
    v_ThD: Tensor

    def attend(self, context: Context, out_ETqD: Tensor | None) -> Tensor:
        """The outputs [E, T, q, D]; where partials are merged, in `out_ETqD`."""
        step, batch, tile = self.step, self.batch, self.tile
        q_ETqD = self._buffer("queries", (len(batch), batch.queries.num_tokens, *self.q_TqD.shape[1:]))
        own = step.dense(q_ETqD, *self._own_keys(context, q_ETqD), step.planner.spec.scale)
        if out_ETqD is None or not tile.groups:
            return step.view.result(batch, own[0])
        others = [partial for group in tile.groups for partial in self._partials(group, q_ETqD)]
        bias_queries = None if tile.bias is None else step.view.bias_queries(batch, tile, self.q_TqD, q_ETqD)
        joined = others[0] if len(others) == 1 else [torch.cat(parts, 1) for parts in zip(*others, strict=True)]
        step.merge(own, joined, out_ETqD, bias=tile.bias, q_EVTHD=bias_queries, scale=step.planner.spec.scale)
        return step.view.result(batch, out_ETqD)

    def _own_keys(self, context: Context, q_ETqD: Tensor) -> Partial:
        """Keys and values of the sequence that needs no correction, [E, n, h, D]; also arranges the queries."""
        batch, tile, view = self.batch, self.tile, self.step.view
        given = self.q_TqD, self.k_ThD, self.v_ThD, q_ETqD
        shape = (len(batch), batch.num_current_tokens + tile.own_history_tokens, *self.k_ThD.shape[1:])
        keys = self._buffer("keys", shape)
        if shape[1] == batch.queries.num_tokens and view.keeps_values:  # the current chunk alone
            view.arrange(batch, *given, keys, None)
            return keys, batch.queries.of_packed(self.v_ThD)
        values, first, end = self._buffer("values", shape), batch.context_tokens, batch.num_current_tokens
        view.arrange(batch, *given, keys[:, first:end], values[:, first:end])
        if first:
            pairs = [pair for number in batch.numbers if (pair := context[number]) is not None]
            stacked = (torch.stack([pair[i][:, tile.heads] for pair in pairs]) for i in (0, 1))
            keys[:, :first], values[:, :first] = view.context(batch, *stacked)
        for piece in tile.own:
            num_columns, first = len(piece.columns), end + piece.first_token
            places = (slice(None), slice(first, first + num_columns * piece.num_tokens), piece.heads or slice(None))
            read = (x[places].unflatten(1, (num_columns, -1)) for x in (keys, values))
            view.read(batch, piece, self.step.planner.pool.records, *read)
        return keys, values

    def _partials(self, group: Group, q_ETqD: Tensor) -> list[Partial]:
        """Over every chunk of a group, part by part: out [E, J, T, q, D], lse [E, J, T, q]."""
        num_ranges, num_columns = len(self.batch), group.num_columns
        shape = (num_ranges, num_columns, group.num_tokens, *self.k_ThD.shape[1:])
        keys, values = self._buffer("keys", shape), self._buffer("values", shape)
        for piece in group.pieces:
            first = piece.first_token // piece.num_tokens
            places = (slice(None), slice(first, first + len(piece.columns)), slice(None), piece.heads or slice(None))
            self.step.view.read(self.batch, piece, self.step.planner.pool.records, keys[places], values[places])
        queries = q_ETqD.unsqueeze(1).expand(-1, num_columns, -1, -1, -1).flatten(0, 1)  # a view of a single range
        partials = []
        for part in group.parts:
            k, v = (x[:, :, part].flatten(0, 1) for x in (keys, values))
            out, lse = self.step.dense(queries, k, v, self.step.planner.spec.scale)
            partials.append((out.unflatten(0, (num_ranges, -1)), lse.unflatten(0, (num_ranges, -1))))
        return partials

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        buffers, step = self.step._buffers, self.step
        if (name, shape) not in buffers:
            buffers[name, shape] = step.scratch.tokens(name, shape, self.q_TqD.dtype, head_major=step.dense.head_major)
        return buffers[name, shape]
