"""Queries, keys and values mapped by cameras: one linear map per frame (rotary/projective.py).

With P_i the map of a query's frame, P_f that of a key's frame, and A the map of the first frame of the query's range:

    q' = (P_i A^-1)^T q      k' = (A P_f^-1) k      v' = (A P_f^-1) v      out = (P_i A^-1) out'

so that one dense call reads whole chunks. A keeps the numbers small: P_i and P_f^-1 each contain the distance to the
world's origin, which cancels only in their product. Both factors are computed in float64. The quant error of stored
keys meets the query pulled back to their frame, (P_i P_f^-1)^T q, so every frame of a corrected chunk is a part with
its own b.

Axes: E ranges, T queries, n keys, F frames, h KV heads of a tile, q their query heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.batches import Batch, Column
from pagedvid.attention.history import PreparedStep
from pagedvid.attention.projection import StepProjection, rotated_keys_refused
from pagedvid.attention.tiles import Piece, Round, by_range
from pagedvid.codecs.assignment import CodecPair
from pagedvid.rotary.projective import map_points
from pagedvid.rotary.tables import from_half_layout

Maps = Tensor
"""float32 [E, F, 4, 4], on the device."""


@dataclass(frozen=True, eq=False)
class ProjectedStep(PreparedStep):
    """A step that reads through cameras."""

    projection: StepProjection = field(kw_only=True)
    keeps_values = False
    pulls_queries = True
    _maps: dict[object, Maps] = field(default_factory=dict, repr=False)
    """Found once for all layers."""

    @property
    @override
    def has_rope(self) -> bool:
        return False

    @override
    def angles(self, columns: Sequence[Column], *, stored_rotated: bool) -> None:
        # Keys do not rotate. Raises StateError for keys stored after rotary embedding.
        if stored_rotated:
            codecs = (codec for codec in columns[0].codecs.key_codecs if codec.stores_rotated)
            raise rotated_keys_refused(next(codecs))

    @override
    def part_tokens(self, column: Column, layer: int) -> tuple[int, ...]:  # frames
        size = self.projection.tokens_per_frame
        return (size,) * (column.num_tokens // size)

    @override
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
        q_ETqD.copy_(mapped(batch.queries.of_packed(q_TqD), self._queries(batch).mT))
        first = 0
        for number, run in enumerate(batch.current):
            end, maps = first + run.num_tokens, self._current(batch, number)
            keys_EnhD[:, first:end] = mapped(run.of_packed(k_ThD), maps)
            if values_EnhD is not None:
                values_EnhD[:, first:end] = mapped(run.of_packed(v_ThD), maps)
            first = end

    @override
    def context_keys(self, batch: Batch, k_EnhD: Tensor, v_EnhD: Tensor) -> tuple[Tensor, Tensor]:
        # Context counts as one frame that is not mapped itself, so that A alone is left.
        maps = self._once(("context", batch), lambda: self._anchors(batch).unsqueeze(1))
        return mapped(k_EnhD, maps), mapped(v_EnhD, maps)

    @override
    def takes_fp8(self, codecs: CodecPair) -> bool:  # maps take keys and values as they are
        return False

    @override
    def read(
        self,
        batch: Batch,
        piece: Piece,
        keys_EJnhD: Tensor,
        values_EJnhD: Tensor,
        inverse_scales: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        maps = self._once(("read", piece.columns), lambda: self._stored(batch, piece.columns))
        records, layout = self.tools.planner.pool.records, self.projection.projection.layout
        decoded = self.buffer("unmapped", tuple(keys_EJnhD.shape))
        tokens = decoded[:, :, : piece.num_tokens]  # without the room for whole pages, whose frames have no maps
        for keys in piece.keys:
            keys.kernels.decode_heads(records, keys.pages_ShP, piece.num_tokens, decoded, keys.heads)
        keys_EJnhD[:, :, : piece.num_tokens] = mapped_chunks(from_half_layout(tokens, layout), maps)
        for values in piece.values:
            values.kernels.decode_heads(records, values.pages_ShP, piece.num_tokens, decoded, values.heads)
        values_EJnhD[:, :, : piece.num_tokens] = mapped_chunks(tokens, maps)

    @override
    def bias_queries(self, batch: Batch, round_: Round, q_TqD: Tensor, q_ETqD: Tensor) -> Tensor:
        # The queries pulled back to every frame of the corrected chunks, in page order.
        given, pulled = batch.queries.of_packed(q_TqD), []
        for each in round_.variants:
            q = self.projection.in_page_order(mapped(given, self._pull(batch, each.column, each.part)))
            pulled.append(q.float() if each.axes is None else q.float() @ each.axes.T)
        return torch.stack(pulled, dim=1)

    @override
    def result(self, batch: Batch, out_ETqD: Tensor) -> Tensor:
        return mapped(out_ETqD, self._queries(batch))

    def _queries(self, batch: Batch) -> Maps:
        """P_i A^-1."""
        forward, inverse = self.projection.forward, self.projection.inverse
        return self._once(("queries", batch), lambda: torch.stack([forward[n] @ inverse[n][0] for n in batch.numbers]))

    def _current(self, batch: Batch, number: int) -> Maps:
        """A P_f^-1 of the frames of one of the current runs."""

        def make() -> Tensor:
            seen = [self.projection.inverse[range_.current[number]] for range_ in batch.ranges]
            return self._anchors(batch).unsqueeze(1) @ torch.stack(seen)

        return self._once(("current", batch, number), make)

    def _stored(self, batch: Batch, columns: Sequence[Column]) -> Tensor:
        """A P_f^-1 of the frames of stored chunks, float64 [E * J, F, 4, 4]."""
        anchors = self._anchors(batch).repeat_interleave(len(columns), dim=0)
        return anchors.unsqueeze(1) @ self.projection.stored(by_range(columns))

    def _pull(self, batch: Batch, column: Column, frame: int) -> Maps:
        """(P_i P_f^-1)^T of one frame of a column."""

        def make() -> Tensor:
            keys = self.projection.stored(column.reads)[:, frame]
            return (torch.stack([self.projection.forward[n] for n in batch.numbers]) @ keys.unsqueeze(1)).mT

        return self._once(("pull", batch, column, frame), make)

    def _anchors(self, batch: Batch) -> Tensor:
        """A, float64 [E, 4, 4]."""
        return torch.stack([self.projection.forward[number][0] for number in batch.numbers])

    def _once(self, key: object, make: Callable[[], Tensor]) -> Maps:
        if key not in self._maps:
            self._maps[key] = make().float().to(self.projection.device)
        return self._maps[key]


def mapped(x_EnhD: Tensor, maps: Maps) -> Tensor:
    """Tokens of F frames, [E, n, h, D], every four consecutive channels mapped by the matrix of the token's frame.

    `maps`: float32 [E, F, 4, 4]; n is a multiple of F. The result has the shape and the dtype of the tokens.
    """
    rows = x_EnhD.float().unflatten(1, (maps.shape[1], -1)).flatten(2, 3)
    return map_points(rows, maps).view(x_EnhD.shape).to(x_EnhD.dtype)


def mapped_chunks(x_EJnhD: Tensor, maps: Maps) -> Tensor:
    """The same for J chunks of each range, [E, J, n, h, D]; `maps` [E * J, F, 4, 4]."""
    return mapped(x_EJnhD.flatten(0, 1), maps).view(x_EJnhD.shape)
