"""A cache that observes what its model attends to, to gather statistics for klt tables (docs/calibrate.md).

Every chunk is counted when it is stored. How queries attend is measured in a random share of the forwards, the same
forwards in all layers: for each range, over its own chunk and the first MAX_CHUNKS of the stored chunks that it reads
and that have as many tokens as its own.

Axes: C chunks; G query heads of a KV head; H KV heads; n tokens of a chunk; D head_dim.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.step import Step
from pagedvid.cache.plan import StepPlan
from pagedvid.calibration.fit import calibration_of
from pagedvid.calibration.statistics import LayerStatistics, Observation
from pagedvid.calibration.watch import Seen, WatchingStep
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.tables_file import Calibration
from pagedvid.paged_kv_cache import PagedKVCache

SHARE = 1 / 4
"""Share of the forwards that are sampled, at random, so that all noise levels occur. Until one of them has read a
stored chunk, all are sampled."""
MAX_CHUNKS = 4
"""Most stored chunks whose attention is measured for one range, which limits the memory that this takes."""


class ObservingCache(PagedKVCache):
    """A `PagedKVCache` that gathers statistics without changing results. Use codecs with little loss, such as bf16."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Takes the arguments of `PagedKVCache`, and raises its errors."""
        super().__init__(*args, **options)
        layout = BlockLayout(self.spec.tokens_per_frame, self.spec.frames_per_block)
        self.statistics = [LayerStatistics(layout) for _ in range(self.spec.num_layers)]
        self.begin(seed=0)

    def begin(self, seed: int) -> None:
        """To be called before each group of videos. `seed`: of the random choice of forwards to sample."""
        self._chance = random.Random(seed)

    def state(self) -> dict[str, Tensor]:
        """Everything observed so far, as tensors by name, for `restore`. At least one chunk must have been stored."""
        layers = enumerate(self.statistics)
        return {f"{number}.{name}": x for number, layer in layers for name, x in layer.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continues from the `state` of another run of the same model."""
        for number, layer in enumerate(self.statistics):
            prefix = f"{number}."
            layer.restore({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})

    def calibration(self, model: str, calibrated_on: str = "") -> Calibration:
        """The calibration from everything observed so far. Arguments and errors are those of `calibration_of`."""
        return calibration_of(self.statistics, model, calibrated_on)

    def _new_step(self, plan: StepPlan) -> Step:
        is_sampled = self._chance.random() < SHARE or not self.statistics[0].is_complete
        return _ObservingStep(plan, self, is_sampled)


class _ObservingStep(WatchingStep):
    def __init__(self, plan: StepPlan, cache: ObservingCache, is_sampled: bool) -> None:
        super().__init__(plan, cache)
        self._statistics = cache.statistics
        self._is_sampled = is_sampled

    @override
    def see(self, layer: int, seen: Seen) -> None:
        if any(pending.source is None for pending in seen.range_.writes):
            self._statistics[layer].add_chunk(seen.k_HnD.cpu(), seen.v_HnD.cpu())
        if self._is_sampled:
            self._add_reading(layer, seen)

    def _add_reading(self, layer: int, seen: Seen) -> None:
        range_ = seen.range_
        reads = [read for read in range_.reads if read.chunk.num_tokens == range_.num_tokens][:MAX_CHUNKS]
        if not reads:
            return
        stored = [self.stored(layer, read, seen.rope) for read in reads]
        keys_CHnD, values_CHnD = (torch.stack([pair[i] for pair in stored]).cpu() for i in (0, 1))
        first_tokens = (*(read.first_token for read in reads), range_.first_token)
        angles = [seen.angles(first, range_.num_tokens) for first in first_tokens]
        cos, sin = (torch.stack([pair[i] for pair in angles]).cpu() for i in (0, 1))
        q_GHnD = seen.q_GHnD.cpu()
        own_k, own_v = (x.cpu().expand(len(q_GHnD), *x.shape) for x in (seen.k_HnD, seen.v_HnD))
        self._statistics[layer].add_reading(Observation(keys_CHnD, values_CHnD, q_GHnD, own_k, own_v, cos, sin))
