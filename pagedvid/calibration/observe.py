"""A cache that observes what its model attends to, to gather statistics for klt tables (docs/calibrate.md).

Every stored chunk is counted. Forwards that read chunks are sampled, the same ones in all layers: for each range, the
first few stored chunks that it reads and that have its own length. A query's own chunk stands for everything that is
not stored yet. Only the rotary view is observed.

Axes: T packed tokens; C chunks; G query heads of a KV head; H KV heads; n tokens of a chunk; D head_dim.
"""

from __future__ import annotations

import random
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.operator import attend_in_graph
from pagedvid.attention.step import Step, checked_layer
from pagedvid.attention.store import LayerStore
from pagedvid.cache.plan import RangePlan, StepPlan
from pagedvid.calibration.fit import calibration_of
from pagedvid.calibration.statistics import LayerStatistics, Observation
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.file import Calibration
from pagedvid.host_state import compiled_as, independent_of_host
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.tables import RopeTables, to_half_layout, unrotate

SHARE = 1 / 4
"""Share of the forwards that are sampled: at random, so that every noise level occurs, after the first that reads."""
MAX_CHUNKS = 4
"""Most chunks counted for one range, which bounds the memory."""


class ObservingCache(PagedKVCache):
    """A `PagedKVCache` that gathers statistics without changing results. Use codecs with little loss, such as bf16."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Takes the arguments of `PagedKVCache`."""
        super().__init__(*args, **options)
        layout = BlockLayout(self.spec.tokens_per_frame, self.spec.frames_per_block)
        self.statistics = [LayerStatistics(layout) for _ in range(self.spec.num_layers)]
        self._chance = random.Random(0)

    def calibration(self, model: str, calibrated_on: str = "") -> Calibration:
        """The calibration from what was observed so far; see `calibration_of`, also for errors."""
        return calibration_of(self.statistics, model, calibrated_on)

    def _new_step(self, plan: StepPlan) -> Step:
        is_sampled = self._chance.random() < SHARE or not self.statistics[0].is_complete
        return _ObservingStep(plan, self, is_sampled)


class _ObservingStep(Step):
    def __init__(self, plan: StepPlan, cache: ObservingCache, is_sampled: bool) -> None:
        super().__init__(plan, cache.pool, cache.spec, cache.backend)
        self._store = LayerStore(cache.pool, cache.spec, cache.book, uses_kernels=False)
        self._statistics = cache.statistics
        self._is_sampled = is_sampled

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
            q_nHD, k_nHD, v_nHD = (_own(x, range_) for x in (q_THD, k_THD, v_THD))
            q_nHD, k_nHD = self._plain(q_nHD, range_, rope), self._plain(k_nHD, range_, rope)
            k_HnD, v_HnD = k_nHD.transpose(0, 1), v_nHD.transpose(0, 1)
            if any(pending.source is None for pending in range_.writes):
                self._statistics[layer].add_chunk(k_HnD, v_HnD)
            if self._is_sampled:
                q_GHnD = q_nHD.unflatten(1, (len(k_HnD), -1)).permute(2, 1, 0, 3)
                self._add_reading(layer, range_, q_GHnD, k_HnD, v_HnD, rope)
        return out

    def _plain(self, x_nHD: Tensor, range_: RangePlan, rope: RopeTables | None) -> Tensor:
        """Queries or keys of a range as before rotary embedding, in half layout."""
        if rope is None:
            return x_nHD
        x_nHD = to_half_layout(x_nHD, rope.layout)
        if self._spec.keys_arrive == "before_rotary":
            return x_nHD
        cos, sin = (table.cpu().unsqueeze(1) for table in rope.tables(range_.first_token, range_.num_tokens))
        return unrotate(x_nHD, cos, sin)

    def _add_reading(
        self, layer: int, range_: RangePlan, q_GHnD: Tensor, k_HnD: Tensor, v_HnD: Tensor, rope: RopeTables | None
    ) -> None:
        reads = [read for read in range_.reads if read.chunk.num_tokens == range_.num_tokens][:MAX_CHUNKS]
        if not reads:
            return
        stored = [self._store.read(read.chunk, layer, rope) for read in reads]
        keys_CHnD, values_CHnD = (torch.stack([pair[i] for pair in stored]).cpu() for i in (0, 1))
        first_tokens = [*(read.first_token for read in reads), range_.first_token]
        angles = [_angles(rope, first, range_.num_tokens, k_HnD.shape[-1]) for first in first_tokens]
        cos, sin = (torch.stack([pair[i] for pair in angles]).float().cpu() for i in (0, 1))
        own_k, own_v = (x.expand(len(q_GHnD), *x.shape) for x in (k_HnD, v_HnD))
        self._statistics[layer].add_reading(Observation(keys_CHnD, values_CHnD, q_GHnD, own_k, own_v, cos, sin))


def _own(x_THD: Tensor, range_: RangePlan) -> Tensor:
    return x_THD[range_.start : range_.stop].float().cpu()


def _angles(rope: RopeTables | None, first_token: int, num_tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [n, D / 2]; without rotary embedding 1 and 0."""
    if rope is None:
        still = torch.ones(num_tokens, head_dim // 2, dtype=torch.float32)
        return still, torch.zeros_like(still)
    return rope.tables(first_token, num_tokens)
