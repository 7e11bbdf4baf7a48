"""Attention through a projection: queries are pulled back to every frame of keys (rotary/projective.py).

    for every frame f of every source:   q_f = R_f^T q     attend to the stored keys and values of f
                                         lse -= b(q_f)     exact per query and frame: the map is the frame's own
                                         out = R_f out     and merge

Axes: E ranges, F query frames, h KV heads, G query heads per KV head, M = G * T query rows, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.groups import ContextSource, CurrentSource, PagedSource, RangeBatch, Source
from pagedvid.attention.partial import Partial, flash_partial
from pagedvid.attention.projection import StepProjection, rotated_keys_refused
from pagedvid.attention.tile import Decoded, Tile, head_major
from pagedvid.correction.formula import QuerySquares
from pagedvid.rotary.projective import map_points


@dataclass(frozen=True)
class FrameMaps:
    """Maps between query frames and the K frames of one source's keys, float32 [E, K, F, 4, 4] each."""

    pull: Tensor
    """R^T, for queries."""
    push: Tensor
    """R, for outputs."""


def frame_maps(query: Tensor, key: Tensor) -> FrameMaps:
    """R = P_query P_key^-1 from P [E, 1, F, 4, 4] and P^-1 [E, K, 1, 4, 4], float64."""
    relative = query @ key
    return FrameMaps(relative.mT.float(), relative.float())


@dataclass
class ProjectiveBatch:
    """A batch and the maps of its sources."""

    batch: RangeBatch
    maps: list[FrameMaps]

    @staticmethod
    def of(batch: RangeBatch, view: StepProjection) -> ProjectiveBatch:
        """Looks up the maps of all sources; context counts as one frame that is not mapped itself."""
        return ProjectiveBatch(batch, [_maps_of(batch, source, view) for source in batch.sources])


def _maps_of(batch: RangeBatch, source: Source, view: StepProjection) -> FrameMaps:
    query = view.queries([batch.numbers[row] for row in source.rows.tolist()])
    if isinstance(source, CurrentSource):
        key = view.current(source.numbers)
    elif isinstance(source, PagedSource):
        key = view.stored(source.reads)
    else:
        key = torch.eye(4, dtype=query.dtype).expand(len(query), 1, 4, 4)
    return frame_maps(query.to(view.device).unsqueeze(1), key.to(view.device).unsqueeze(2))


@dataclass
class _Keys:
    """One source's keys and values as they are stored, [E, h, n, D], keys in page order."""

    k: Tensor
    v: Tensor
    stored: Decoded | None = None
    """Of paged keys."""


@dataclass
class ProjectiveTile(Tile):
    """Keys and values are read through a projection."""

    view: StepProjection

    @override
    def attend(self, q_ThD: Tensor, projected: ProjectiveBatch, k_ThD: Tensor, v_ThD: Tensor, out_ThGD: Tensor) -> None:
        batch, group = projected.batch, q_ThD.shape[1] // k_ThD.shape[1]
        q_EhMD = head_major(q_ThD[batch.tokens], group)
        total: Partial | None = None
        for source, maps in zip(batch.sources, projected.maps, strict=True):
            keys = self._keys(source, k_ThD, v_ThD, q_EhMD.dtype)
            rows = slice(None) if len(source.rows) == len(q_EhMD) else source.rows
            for frame in range(maps.pull.shape[1]):
                partial = self._partial(source, keys, frame, q_EhMD[rows], maps, group)
                if total is None:
                    total = partial  # a range's own keys come first, so all rows are there
                else:
                    self.add(total, source, partial)
        assert total is not None
        self.write(total, batch, out_ThGD)

    def _keys(self, source: Source, k_ThD: Tensor, v_ThD: Tensor, dtype: torch.dtype) -> _Keys:
        if isinstance(source, PagedSource):
            keys = self.decode("keys", source, "first", dtype)
            if keys.codec.spec.stores_rotated:
                raise rotated_keys_refused(keys.codec.spec)
            return _Keys(keys.tokens, self.decode("values", source, "second", dtype).tokens, keys)
        if isinstance(source, ContextSource):
            k, v = self.context_of(source)
        else:
            k, v = k_ThD[source.tokens], v_ThD[source.tokens]
        return _Keys(self.view.in_page_order(k).transpose(1, 2), v.transpose(1, 2))

    def _partial(self, source: Source, keys: _Keys, frame: int, q_EhMD: Tensor, maps: FrameMaps, group: int) -> Partial:
        """Attention of the source's ranges over one of its frames, corrected and mapped back."""
        size = keys.k.shape[2] if isinstance(source, ContextSource) else self.view.tokens_per_frame
        tokens = slice(frame * size, (frame + 1) * size)
        q = self.view.in_page_order(map_rows(q_EhMD.float(), maps.pull[:, frame], group))
        partial = flash_partial(q.to(q_EhMD.dtype), keys.k[:, :, tokens], keys.v[:, :, tokens], self.reader.spec.scale)
        partial.out = map_rows(partial.out, maps.push[:, frame], group)
        if isinstance(source, PagedSource) and keys.stored is not None:
            b = self.bias(source, keys.stored, QuerySquares(q), tokens, has_rope=False)
            if b is not None:
                partial.lse -= b
        return partial


def map_rows(x_EhMD: Tensor, matrices_EF44: Tensor, group: int) -> Tensor:
    """Query rows, each mapped by the matrix of its frame. Rows are ordered by query head, then frame, then token."""
    rows = x_EhMD.unflatten(2, (group, matrices_EF44.shape[1], -1))
    return map_points(rows, matrices_EF44[:, None, None]).flatten(2, 4)
