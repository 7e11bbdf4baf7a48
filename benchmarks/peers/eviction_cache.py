"""A cache that forgets single tokens, for video-level comparisons with token eviction (eviction.py).

Chunks are stored in the pages of any codec as usual; which tokens a head still sees is kept beside them, and attention
leaves the others out. So memory is not saved here: `bits` says what the kept tokens would take in BF16.

Axes: T packed tokens; E ranges with equally long histories; H KV heads; G query heads of each; n tokens; D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from typing_extensions import override

from pagedvid.attention.measure import by_kv_head
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.step import Step, checked_layer
from pagedvid.cache.plan import PendingChunk, RangePlan, StepPlan
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.tables import RopeTables
from peers.eviction import BF16_BITS, SCORERS, Allotment, attention_paid


class EvictingCache(PagedKVCache):
    """A `PagedKVCache` whose heads see only some tokens of each chunk."""

    def __init__(self, *args: Any, scorer: str, allotment: Allotment, **options: Any) -> None:
        """Takes the arguments of `PagedKVCache`. Raises ValueError for an unknown scorer."""
        super().__init__(*args, **options)
        if scorer not in SCORERS:
            raise ValueError(f"scorer is {scorer!r}; allowed are {', '.join(SCORERS)}")
        self.scorer = scorer
        self.allotment = allotment
        self.kept: dict[tuple[int, int], Tensor] = {}
        """By chunk id and layer, which tokens the heads see, bool [H, n]."""

    @property
    def bits(self) -> float:
        """BF16 bits per element of everything that was stored."""
        return BF16_BITS * float(torch.cat([kept.flatten() for kept in self.kept.values()]).float().mean())

    def _new_step(self, plan: StepPlan) -> Step:
        return _EvictingStep(plan, self)


class _EvictingStep(Step):
    def __init__(self, plan: StepPlan, cache: EvictingCache) -> None:
        super().__init__(plan, cache.pool, cache.spec, cache.backend)
        self._cache = cache

    @override
    def attend(
        self,
        layer: SupportsIndex,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        rope: RopeTables | None = None,
        **options: Any,
    ) -> Tensor:
        layer = checked_layer(layer, self._spec.num_layers)
        rotation, _ = self._rotary_view(rope, q_THD.dtype, ())
        out_THD = torch.empty_like(q_THD)
        ordered = sorted(self.plan.ranges, key=_lengths)
        for _, alike in groupby(ordered, key=_lengths):
            self._attend_alike(layer, list(alike), q_THD, k_THD, v_THD, rotation, out_THD)
        if self._is_commit:
            for range_ in self.plan.ranges:
                for pending in range_.writes:
                    scores_Hn = self._scores(layer, range_, pending, q_THD, k_THD, rotation)
                    self._cache.kept[pending.chunk.id, layer] = self._cache.allotment.keep(layer, scores_Hn)
            self.store(layer, k_THD, v_THD, rope)
        return out_THD

    def _attend_alike(
        self,
        layer: int,
        ranges: Sequence[RangePlan],
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        rotation: Rotation,
        out_THD: Tensor,
    ) -> None:
        tokens_ET = torch.stack([torch.arange(range_.start, range_.stop) for range_ in ranges])
        own_k_EHnD, own_v_EHnD = (x.transpose(1, 2) for x in (rotation.rotated(k_THD, tokens_ET), v_THD[tokens_ET]))
        history = [self._history(layer, range_, rotation) for range_ in ranges]
        old_k, old_v, seen_EHn = (torch.stack([each[i] for each in history]) for i in range(3))
        keys_EHnD, values_EHnD = torch.cat([old_k, own_k_EHnD], dim=2), torch.cat([old_v, own_v_EHnD], dim=2)
        seen_EHn = torch.cat([seen_EHn, seen_EHn.new_ones(own_k_EHnD.shape[:3])], dim=2)
        q_EHRD = rotation.rotated(q_THD, tokens_ET).unflatten(2, (self._spec.num_kv_heads, -1)).permute(0, 2, 3, 1, 4)
        group = q_EHRD.shape[2]
        out = scaled_dot_product_attention(
            q_EHRD.flatten(2, 3), keys_EHnD, values_EHnD, seen_EHn.unsqueeze(2), scale=self._spec.scale
        )
        out_THD[tokens_ET] = out.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)

    def _history(self, layer: int, range_: RangePlan, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """All stored keys, rotated, and values [H, n, D], and which of them are seen, bool [H, n]."""
        shape = (self._spec.num_kv_heads, 0, self._spec.head_dim)
        keys, values = [torch.empty(shape)], [torch.empty(shape)]
        seen = [torch.empty(shape[:2], dtype=torch.bool)]
        for read in range_.reads:
            k_HnD, v_HnD = self._backend.store.read(read.chunk, layer, rotation.stored_by)
            keys.append(rotation.at(k_HnD, read.first_token))
            values.append(v_HnD)
            seen.append(self._cache.kept[read.chunk.id, layer])
        return torch.cat(keys, dim=1), torch.cat(values, dim=1), torch.cat(seen, dim=1)

    def _scores(
        self, layer: int, range_: RangePlan, pending: PendingChunk, q_THD: Tensor, k_THD: Tensor, rotation: Rotation
    ) -> Tensor:
        """What the scorer says of the tokens of a new chunk, [H, n]."""
        num_heads, scorer = self._spec.num_kv_heads, self._cache.scorer
        if scorer == "random":
            chance = torch.Generator().manual_seed(pending.chunk.id * self._spec.num_layers + layer)
            return torch.rand(num_heads, range_.num_tokens, generator=chance)
        tokens = torch.arange(range_.start, range_.stop)
        queries, keys = (rotation.as_reading(x, tokens, range_, pending) for x in (q_THD, k_THD))
        others_HnD, _, seen_Hn = self._history(layer, range_, rotation)
        q_nHD = queries.here_SHD
        if scorer == "ahead":
            q_nHD, next_HnD = queries.reading_SHD, keys.reading_SHD.transpose(0, 1)
            others_HnD = torch.cat([others_HnD, next_HnD], dim=1)
            seen_Hn = torch.cat([seen_Hn, seen_Hn.new_ones(next_HnD.shape[:2])], dim=1)
        return attention_paid(by_kv_head(q_nHD, num_heads), keys.here_SHD.transpose(0, 1), others_HnD, seen_Hn)


def _lengths(range_: RangePlan) -> tuple[int, ...]:
    """Tokens of the range, and of every chunk that it reads."""
    return range_.num_tokens, *(read.chunk.num_tokens for read in range_.reads)
