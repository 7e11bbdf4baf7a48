"""The backend for CPUs. It never holds a dense window: pages are decoded chunk by chunk (large chunks a few heads at a
time) into a small reused scratch, rotated, attended to, corrected and merged (tile.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from typing_extensions import override

from pagedvid.attention.backend import AttentionBackend
from pagedvid.attention.chunk_scratch import Scratch
from pagedvid.attention.groups import PagedSource, RangeBatch, group_ranges
from pagedvid.attention.projection import StepProjection
from pagedvid.attention.projective_tile import ProjectiveBatch, ProjectiveTile
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.store import LayerStore
from pagedvid.attention.tile import PageReader, PreparedStep, RotaryTile
from pagedvid.cache.plan import RangePlan, StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.codecs.book import CodecBook


class TorchBackend(AttentionBackend):
    """Chunk by chunk, a few heads at a time.

    `scratch_bytes` bounds the decoded keys and values, except that one head of one chunk always fits. Queries, partials
    and other temporaries come on top (about four times as much), and so do a step's rotary tables.
    """

    name = "torch"

    def __init__(self, pool: PagePool, spec: CacheSpec, book: CodecBook, scratch_bytes: int) -> None:
        self.store = LayerStore(pool, spec, book)
        self._reader = PageReader(pool, spec, book, Scratch(pool.device))
        self._spec = spec
        self._page = spec.shape.page
        self._scratch_bytes = scratch_bytes

    @staticmethod
    @override
    def unsupported_reasons(spec: CacheSpec, device: torch.device) -> list[str]:
        reasons = []
        if device.type != "cpu":
            reasons.append(f"it runs on the device cpu, not on {device.type}")
        if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
            reasons.append(f"torch {torch.__version__} lacks the flash kernel for the CPU; 2.6 or newer has it")
        return reasons

    @override
    def prepare(
        self, plan: StepPlan, view: Rotation | StepProjection, dtype: torch.dtype, context_tokens: Sequence[int] = ()
    ) -> PreparedStep:
        batches = group_ranges(
            plan,
            view.rope if isinstance(view, Rotation) else None,
            dtype,
            context_tokens,
            lambda range_: self._scratch_bytes // self._range_bytes(range_, dtype),
        )
        head_tiles = [self._head_tiles(batch, dtype) for batch in batches]
        if isinstance(view, Rotation):
            tile: Any = partial(RotaryTile, self._reader, rotation=view)
            work: list[tuple[Any, Sequence[slice]]] = list(zip(batches, head_tiles, strict=True))
        else:
            tile = partial(ProjectiveTile, self._reader, view=view)
            work = list(zip((ProjectiveBatch.of(batch, view) for batch in batches), head_tiles, strict=True))
        return PreparedStep(self._spec.num_kv_heads, tile, work)

    def _range_bytes(self, range_: RangePlan, dtype: torch.dtype) -> int:
        """Decoded K and V of the largest chunk that the range reads, over all heads."""
        largest = max(
            (self._padded_tokens(read.chunk.num_tokens, read.chunk.codecs) for read in range_.reads),
            default=range_.num_tokens,
        )
        return 2 * dtype.itemsize * largest * self._spec.num_kv_heads * self._spec.head_dim

    def _padded_tokens(self, num_tokens: int, codecs: ChunkCodecs) -> int:
        used = codecs.in_layers(self._spec.num_layers)
        return max(codec.padded_tokens(self._page, num_tokens) for codec in used)

    def _head_tiles(self, batch: RangeBatch, dtype: torch.dtype) -> list[slice]:
        """All heads at once if the batch's decoded or current chunks fit in the scratch, otherwise as many as fit."""
        paged = [source for source in batch.sources if isinstance(source, PagedSource)]
        padded = [len(source.reads) * self._padded_tokens(source.num_tokens, source.codecs) for source in paged]
        widest = max([batch.tokens.numel(), *padded])
        head_bytes = 2 * dtype.itemsize * widest * self._spec.head_dim
        num_heads = self._spec.num_kv_heads
        num_tiles = -(-num_heads // max(1, min(num_heads, self._scratch_bytes // head_bytes)))
        per_tile = -(-num_heads // num_tiles)
        return [slice(first, min(first + per_tile, num_heads)) for first in range(0, num_heads, per_tile)]
