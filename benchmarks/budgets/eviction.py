"""Token eviction at equal bytes: as many BF16 tokens as the budget buys, each with exact keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from budgets.video import Row
from lib.caches import REFERENCE
from lib.lab import Lab, Request
from lib.report import note
from lib.samples import Sample, capture
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.paged_kv_cache import PagedKVCache
from peers import dummy_heads, lu_kv
from peers.eviction import BF16_BITS, AdaKV, Allotment, even_counts
from peers.eviction_cache import EvictingCache


@dataclass(frozen=True)
class Eviction:
    """A scorer and an allotment, on bf16 pages."""

    scorer: str
    allotment: Allotment

    def cache(self, lab: Lab) -> PagedKVCache:
        spec = lab.caches.spec(REFERENCE)
        memory = len(lab.requests) * lab.caches.stream_bytes(spec)
        return EvictingCache(spec, memory, scorer=self.scorer, allotment=self.allotment)

    def bits(self, lab: Lab, cache: PagedKVCache) -> float:
        assert isinstance(cache, EvictingCache)  # `cache` made it
        return cache.bits


def capture_prompts(model: DemoModel, window_chunks: int, requests: Sequence[Request], num_steps: int) -> list[Sample]:
    """What the profiles are measured on: the layers of some videos, with a full window."""
    note(f"profiles for token eviction: {len(requests)} prompts")
    return [
        sample
        for request in requests
        for sample in capture(model, request.prompt, request.seed, window_chunks, num_steps)
    ]


def eviction_rows(lab: Lab, samples: Sequence[Sample], budgets: Sequence[float]) -> list[Row]:
    """Every method at every budget that keeps at least one token of each head on average."""
    curves = {scorer: lu_kv.loss_curves(samples, scorer, lu_kv.mean_utilities) for scorer in ("own", "ahead")}
    published = lu_kv.loss_curves(samples, "ahead", lu_kv.largest_utilities)
    geometry, needs_LH = lab.model.geometry, dummy_heads.needs(samples)

    def methods(count: int) -> Iterator[tuple[str, Eviction]]:
        even = even_counts(geometry.num_layers, geometry.num_kv_heads, count)
        for scorer in ("own", "ahead"):
            yield f"top-k, {scorer}", Eviction(scorer, even)
            yield f"AdaKV, {scorer}", Eviction(scorer, AdaKV(count))
            yield f"LU-KV, {scorer}", Eviction(scorer, lu_kv.spend(curves[scorer], count))
        yield "LU-KV max, ahead", Eviction("ahead", lu_kv.spend(published, count))
        yield "dummy heads", Eviction("ahead", dummy_heads.whole_heads(needs_LH, geometry.chunk_tokens, count))
        yield "random tokens", Eviction("random", even)

    counts = {budget: int(geometry.chunk_tokens * budget / BF16_BITS) for budget in budgets}
    return [
        Row(method, budget, storage) for budget, count in counts.items() if count for method, storage in methods(count)
    ]
