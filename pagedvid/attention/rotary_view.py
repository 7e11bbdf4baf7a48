"""Queries and keys rotated by their positions, or not at all for a model without rotary embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pagedvid.attention.batches import Batch, Column
from pagedvid.attention.layer_reads import Piece, Tile, by_range
from pagedvid.attention.rotation import Rotation
from pagedvid.rotary.angles import Angles


@dataclass(frozen=True, eq=False)
class RotaryView:
    """A step's own positions and those of its history. Satisfies `View` of history.py."""

    rotation: Rotation
    dtype: torch.dtype
    device: torch.device
    arrange_run: Callable[..., None]
    """`rotary.tables.arrange` or its kernel."""
    keeps_values = True
    pulls_queries = False
    _angles: dict[Any, Angles] = field(default_factory=dict, repr=False)
    """Of the columns of the step, the same for all layers."""

    @property
    def has_rope(self) -> bool:
        """Whether the model has rotary embedding."""
        return self.rotation.rope is not None

    def angles(self, columns: Sequence[Column], *, stored_rotated: bool) -> Angles | None:
        """From where keys were stored to where they are read."""
        reads = by_range(columns)
        rope = self.rotation.stored_by
        is_shifted = stored_rotated and any(read.first_token != read.chunk.position for read in reads)
        if rope is None or (stored_rotated and not is_shifted):
            return None
        key = (tuple(columns), stored_rotated)
        if key not in self._angles:
            places = [(read.first_token, read.chunk.num_tokens) for read in reads]
            if stored_rotated:
                positions = [read.chunk.position for read in reads]
                self._angles[key] = Angles.shifted(rope, places, positions, self.dtype, self.device)
            else:
                self._angles[key] = Angles.of(rope, places, self.dtype, self.device)
        return self._angles[key]

    def part_tokens(self, column: Column, layer: int) -> tuple[int, ...]:
        """The chunk as a whole, or its runs of pages where the correction's unit is the page."""
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
        """Queries and current keys rotated, values as they are."""
        layout = "half" if self.rotation.rope is None else self.rotation.rope.layout
        first = 0
        for run in batch.current:
            places = slice(first, first + run.num_tokens)
            values = None if values_EnhD is None else values_EnhD[:, places]
            q, q_out = (q_TqD, q_ETqD) if run is batch.queries else (None, None)
            arguments = run.starts, run.num_tokens, layout, self._packed_angles, q_out, keys_EnhD[:, places], values
            self.arrange_run(q, k_ThD, v_ThD, *arguments)
            first = places.stop

    @cached_property
    def _packed_angles(self) -> tuple[Tensor, Tensor] | None:
        """(cos, sin) [T, D/2] of all packed tokens; None: queries and keys arrive rotated, or have no positions."""
        rotation = self.rotation
        if rotation.cos is None or rotation.sin is None or rotation.arrive_rotated:
            return None
        return rotation.cos[:, 0], rotation.sin[:, 0]

    def context(self, batch: Batch, k_EnhD: Tensor, v_EnhD: Tensor) -> tuple[Tensor, Tensor]:
        """In page order, not rotated."""
        return self.rotation.in_page_order(k_EnhD), v_EnhD

    def read(self, batch: Batch, piece: Piece, records: Tensor, keys_EJnhD: Tensor, values_EJnhD: Tensor) -> None:
        """Keys rotated."""
        piece.keys.decode(records, piece.key_pages, piece.num_tokens, keys_EJnhD, piece.angles)
        piece.values.decode(records, piece.value_pages, piece.num_tokens, values_EJnhD)

    def bias_queries(self, batch: Batch, tile: Tile, q_TqD: Tensor, q_ETqD: Tensor) -> Tensor:
        """Rotation does not change b: keys that rotate after storage take mean squares of pairs."""
        if len(tile.variants) == 1 and tile.variants[0].axes is None:
            return q_ETqD.unsqueeze(1)
        along = [q_ETqD.float() if each.axes is None else q_ETqD.float() @ each.axes.T for each in tile.variants]
        return torch.stack(along, dim=1)

    def result(self, batch: Batch, out_ETqD: Tensor) -> Tensor:
        """As they are."""
        return out_ETqD
