"""A step that shows, layer by layer, what each of its ranges attends with: the base of steps that calibrate.

Only the rotary view is watched.

Axes: T packed tokens; G query heads of a KV head; H KV heads; n tokens of a chunk; D head_dim.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.operator import attend_in_graph
from pagedvid.attention.step import Step, checked_layer
from pagedvid.attention.store import LayerStore
from pagedvid.cache.plan import RangePlan, Read, StepPlan
from pagedvid.host_state import compiled_as, independent_of_host
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.tables import RopeTables, to_half_layout, unrotate


@dataclass(frozen=True)
class Seen:
    """One range in one layer: float32, before rotary embedding, in half layout, on the device of the pool."""

    range_: RangePlan
    q_GHnD: Tensor
    k_HnD: Tensor
    v_HnD: Tensor
    rope: RopeTables | None

    def angles(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), float32 [num_tokens, D / 2], from a position on; without rotary embedding 1 and 0."""
        half = self.k_HnD.shape[2] // 2
        if self.rope is None:
            still = torch.ones(num_tokens, half, dtype=torch.float32, device=self.k_HnD.device)
            return still, torch.zeros_like(still)
        cos, sin = self.rope.tables(first_token, num_tokens)
        return cos.to(self.k_HnD), sin.to(self.k_HnD)


class WatchingStep(Step):
    """Attends as any step, and calls `see` for every range."""

    def __init__(self, plan: StepPlan, cache: PagedKVCache) -> None:
        super().__init__(plan, cache.pool, cache.spec, cache.backend)
        self._store = LayerStore(cache.pool, cache.spec, cache.book, uses_kernels=False)

    @abstractmethod
    def see(self, layer: int, seen: Seen) -> None:
        """Called for each range after attention in a layer."""

    def stored(self, layer: int, read: Read, rope: RopeTables | None) -> tuple[Tensor, Tensor]:
        """Keys (before rotary embedding) and values of a chunk that is read, float32 [H, n, D]."""
        return self._store.read(read.chunk, layer, rope)

    @override
    @compiled_as(attend_in_graph)
    @independent_of_host
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
        out = super().attend(layer, q_THD, k_THD, v_THD, rope, **options)
        rope = None if rope is None else self._store.ropes.checked(rope)
        for range_ in self.plan.ranges:
            q_nHD, k_nHD, v_nHD = (x[range_.start : range_.stop].float() for x in (q_THD, k_THD, v_THD))
            q_nHD, k_nHD = self._plain(q_nHD, range_, rope), self._plain(k_nHD, range_, rope)
            q_GHnD = q_nHD.unflatten(1, (k_nHD.shape[1], -1)).permute(2, 1, 0, 3)
            self.see(layer, Seen(range_, q_GHnD, k_nHD.transpose(0, 1), v_nHD.transpose(0, 1), rope))
        return out

    def _plain(self, x_nHD: Tensor, range_: RangePlan, rope: RopeTables | None) -> Tensor:
        """Queries or keys of a range as before rotary embedding, in half layout."""
        if rope is None:
            return x_nHD
        x_nHD = to_half_layout(x_nHD, rope.layout)
        if self._spec.keys_arrive == "before_rotary":
            return x_nHD
        cos, sin = (table.to(x_nHD.device).unsqueeze(1) for table in rope.tables(range_.first_token, range_.num_tokens))
        return unrotate(x_nHD, cos, sin)
