"""Commits without a model: a manager whose chunks count as written at once. Its pool may be on the device "meta"."""

from __future__ import annotations

from collections.abc import Sequence

from pagedvid.cache.manager import CacheManager
from pagedvid.cache.plan import QueryRange, StepPlan
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs


def make_manager(
    num_pages: int, codecs: StreamCodecs | str = "int2", num_layers: int = 1, num_kv_heads: int = 1
) -> CacheManager:
    """Heads of 8 channels, no bytes. An int2 chunk of up to 128 tokens takes 2 pages per head: keys, values."""
    codecs = StreamCodecs(codecs) if isinstance(codecs, str) else codecs
    spec = CacheSpec(num_layers, num_kv_heads, 8, codecs=codecs)
    return CacheManager(spec, num_pages * spec.shape.page_bytes, device="meta")


def mark_written(manager: CacheManager, plan: StepPlan) -> None:
    """Marks every layer as written, as a forward that attends every layer does."""
    for pending in plan.pending:
        pending.layers_written.update(range(manager.spec.num_layers))


def commit(manager: CacheManager, *items: Stream | QueryRange) -> None:
    """One commit pass; a bare stream means its whole next chunk."""
    ranges = [item if isinstance(item, QueryRange) else QueryRange(item, commit=True) for item in items]
    with manager.transaction(ranges) as plan:
        mark_written(manager, plan)
    manager.check()


def live(stream: Stream, branch: str = "cond") -> Sequence[int]:
    """Indices of the chunks that a branch keeps."""
    return list(stream.history(branch).chunks)
