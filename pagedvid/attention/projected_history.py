"""Attention through a projection on a GPU: keys and values are mapped, a chunk at a time, to meet mapped queries.

With P_i the map of a query's frame, P_f that of a key's frame (rotary/projective.py), and A the map of the first frame
of the query's range:

    q' = (P_i A^-1)^T q      k' = (A P_f^-1) k      v' = (A P_f^-1) v      out = (P_i A^-1) out'

so that one dense call reads a whole chunk. A keeps the numbers small: P_i and P_f^-1 each contain the distance to the
world's origin, which cancels only in their product. Both factors are computed in float64. Where keys are corrected, b
needs the query pulled back to each frame of keys, (P_i P_f^-1)^T q, and so there is one dense call per frame.

The CPU backend always pulls queries back (projective_tile.py): a call costs little there.

Axes: T packed tokens, H heads, n keys, F frames, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.backend import PreparedView
from pagedvid.attention.chunk_scratch import ChunkScratch
from pagedvid.attention.dense.ragged import DenseAttention, Ragged
from pagedvid.attention.kernels.merge import corrected_merge, merge
from pagedvid.attention.projection import StepProjection, rotated_keys_refused
from pagedvid.attention.sources import Context, Sources
from pagedvid.attention.step_tables import ReadGroup
from pagedvid.cache.plan import StepPlan
from pagedvid.rotary.projective import map_points
from pagedvid.rotary.tables import from_half_layout

Maps = Tensor
"""float32 [F, 4, 4], on the device."""


@dataclass(frozen=True)
class StoredMaps:
    """Maps of one chunk that a range reads."""

    keys: Maps
    """A P_f^-1 of its frames."""
    frames: Tensor
    """P_i P_f^-1, [F of keys, F of queries, 4, 4]."""
    one_frame: Ragged
    """The range's queries over one frame of keys."""


@dataclass(frozen=True)
class ProjectedStep(PreparedView):
    """A step in a projective view."""

    scratch: ChunkScratch
    scale: float
    view: StepProjection
    sources: Sources
    groups: list[ReadGroup]
    dense: DenseAttention
    queries: Maps
    """P_i A^-1 of the frames of all packed queries."""
    current: Maps
    """A P_f^-1 of the frames of all ranges' current keys, one range after the other."""
    context: Maps
    """A of every range: context counts as one frame that is not mapped itself."""
    stored: list[list[StoredMaps]]
    """For every read of every group."""

    @staticmethod
    def of(
        scratch: ChunkScratch,
        scale: float,
        plan: StepPlan,
        view: StepProjection,
        sources: Sources,
        groups: list[ReadGroup],
        dense: DenseAttention,
    ) -> ProjectedStep:
        """Raises StateError for keys stored after rotary embedding."""
        for group in groups:
            _require_keys_before_rotary(group)
        anchors = [forward[0] for forward in view.forward]
        queries = [forward @ inverse[0] for forward, inverse in zip(view.forward, view.inverse, strict=True)]
        current = [
            anchor @ view.inverse[number]
            for anchor, range_ in zip(anchors, plan.ranges, strict=True)
            for number in range_.current
        ]
        return ProjectedStep(
            scratch,
            scale,
            view,
            sources,
            groups,
            dense,
            torch.cat(queries).float().to(view.device),
            torch.cat(current).float().to(view.device),
            torch.stack(anchors).float().to(view.device),
            [_stored_maps(view, group) for group in groups],
        )

    @override
    def attend(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, context: Context = ()) -> Tensor:
        q = mapped(q_THD, self.queries.mT)
        seen = slice(None) if self.sources.current_keys is None else self.sources.current_keys
        k, v = (mapped(x[seen], self.current) for x in (k_THD, v_THD))
        out, lse = self.dense(q, k, v, self.sources.current, self.scale)
        total = out.float(), lse
        if self.sources.context is not None:
            merge(total, self.dense(q, *self._mapped_context(context), self.sources.context, self.scale))
        for group, stored in zip(self.groups, self.stored, strict=True):
            for number, maps in enumerate(stored):
                self._attend_read(group, number, maps, layer, q_THD, q, total)
        return mapped(total[0], self.queries).to(q_THD.dtype)

    def _attend_read(
        self,
        group: ReadGroup,
        number: int,
        maps: StoredMaps,
        layer: int,
        q_THD: Tensor,
        mapped_q_THD: Tensor,
        total: tuple[Tensor, Tensor],
    ) -> None:
        """Merges attention over one chunk into `total`."""
        tokens, q = group.queries[number], mapped_q_THD[group.queries[number]]
        keys, values = self.scratch.decode(group, number, layer, q.dtype)
        keys = mapped(from_half_layout(keys, self.view.projection.layout), maps.keys)
        values = mapped(values, maps.keys)
        running = total[0][tokens], total[1][tokens]
        if not self.scratch.is_corrected(group, layer):
            merge(running, self.dense(q, keys, values, group.sequences[number], self.scale))
            return
        size = self.view.tokens_per_frame
        for frame, relative in enumerate(maps.frames):
            part = slice(frame * size, (frame + 1) * size)
            partial = self.dense(q, keys[part], values[part], maps.one_frame, self.scale)
            error = self.scratch.quant_error_of_tokens(group, number, layer, part)
            pulled = self.view.in_page_order(mapped(q_THD[tokens], relative.mT))
            corrected_merge(running, partial, pulled if error is None else error.along(pulled), self.scale, error)

    def _mapped_context(self, text: Context) -> tuple[Tensor, Tensor]:
        pairs = [(number, pair) for number, pair in enumerate(text) if pair is not None and len(pair[0])]
        keys, values = (
            torch.cat([mapped(pair[i], self.context[number : number + 1]) for number, pair in pairs]) for i in (0, 1)
        )
        return keys, values


def mapped(x_nHD: Tensor, maps: Maps) -> Tensor:
    """Tokens [n, H, D] of F frames, every four consecutive channels mapped by the matrix of the token's frame."""
    rows = x_nHD.float().unflatten(0, (len(maps), -1)).flatten(1, 2)
    return map_points(rows, maps).view(x_nHD.shape).to(x_nHD.dtype)


def _stored_maps(view: StepProjection, group: ReadGroup) -> list[StoredMaps]:
    made = []
    for read, number, sequence in zip(group.reads, group.ranges_of, group.sequences, strict=True):
        forward = view.forward[number]
        inverse = view.stored([read])[0]
        keys, frames = forward[0] @ inverse, forward @ inverse.unsqueeze(1)
        one_frame = Ragged.of(sequence.query_lengths, [view.tokens_per_frame], view.device)
        made.append(StoredMaps(keys.float().to(view.device), frames.float().to(view.device), one_frame))
    return made


def _require_keys_before_rotary(group: ReadGroup) -> None:
    for codec in group.codecs.in_layers(len(group.segments), ("keys",)):
        if codec.stores_rotated:
            raise rotated_keys_refused(codec)
