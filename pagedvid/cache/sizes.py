"""Every integer that the memory of a chunk depends on. Pure functions: the estimate shown to users, the reservation at
admission and the allocation at commit all come from here and from stream_sizes.py, so they cannot disagree.

codecs/spec.py says what a page is, and a codec how many tokens it holds. A chunk takes, for every layer and KV head,
pages for its keys and pages for its values; all come from one pool and are counted alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from pagedvid.arguments import whole_number
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.codecs.assignment import KINDS, ChunkCodecs
from pagedvid.codecs.spec import DEFAULT_PAGE_ROWS, CodecSpec, PageFormat, block_frames
from pagedvid.errors import ConfigError

ALPHA_BYTES = 4
"""A measured correction factor is one float32 per (layer, KV head, chunk)."""
VARIANCE_BYTES = 2
"""A change of variance is one bfloat16 per (layer, KV head, channel, chunk)."""
MAX_SIZE = 2**20
"""Largest number of layers, heads, channels, rows or tokens of a frame; no model comes near."""


@dataclass(frozen=True)
class KVShape:
    """The keys and values of one model: how many (layer, KV head) tables there are and how wide a token is."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    page_rows: int = DEFAULT_PAGE_ROWS
    tokens_per_frame: int = 1
    frames_per_block: int = 1
    correction: str = "measured"
    """Mode of the correction (correction/formula.py), which decides what chunks keep besides their pages."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim", "page_rows", "tokens_per_frame", "frames_per_block"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1, MAX_SIZE, error=ConfigError))
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; it must be even (rotary pairs, fp16 step sizes)")

    def with_frames(self, tokens_per_frame: int, frames_per_chunk: int) -> KVShape:
        """The same shape for a model with such frames and chunks."""
        return replace(self, tokens_per_frame=tokens_per_frame, frames_per_block=block_frames(frames_per_chunk))

    def with_pages_for(self, codecs: StreamCodecs) -> KVShape:
        """The same shape with pages and a correction that suit the codecs."""
        return replace(self, page_rows=codecs.page_rows, correction=codecs.correction)

    @property
    def num_tables(self) -> int:
        """Pairs of (layer, KV head)."""
        return self.num_layers * self.num_kv_heads

    @cached_property
    def page(self) -> PageFormat:
        """Format of its pages."""
        return PageFormat(self.head_dim, self.page_rows, self.tokens_per_frame, self.frames_per_block)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.page.num_bytes

    def pages_in_memory(self, memory_bytes: int) -> int:
        """Pages that fit in `memory_bytes`."""
        return memory_bytes // self.page_bytes

    def table_pages(self, num_tokens: int, codecs: ChunkCodecs) -> tuple[int, ...]:
        """Pages of every table of a chunk, ordered by (kind, layer, KV head), keys before values."""
        return _table_pages(self, num_tokens, codecs)

    def table_bounds(self, num_tokens: int, codecs: ChunkCodecs) -> NDArray[np.int64]:
        """Where the pages of each entry of `table_pages` begin, and where the last ones end: int64 [entries + 1]."""
        return _table_bounds(self, num_tokens, codecs)

    def chunk_pages(self, num_tokens: int, codecs: ChunkCodecs) -> int:
        """Pages of one chunk, over all layers and KV heads, keys and values."""
        return _chunk_pages(self, num_tokens, codecs)

    def stored_bytes(self, num_tokens: int, codecs: ChunkCodecs) -> int:
        """Bytes of one stored chunk: codes, step sizes, zero points, padding, numbers for the correction."""
        return self.page_bytes * self.chunk_pages(num_tokens, codecs) + self.correction_bytes(codecs)

    def keeps_alpha(self, codecs: ChunkCodecs) -> bool:
        """Whether chunks in these codecs keep measured factors."""
        return self.correction == "measured" and bool(_quantized_keys(self, codecs))

    def keeps_variance(self, codecs: ChunkCodecs) -> bool:
        """Whether chunks in these codecs keep how storing them changed the variance of their keys.

        That is what "variance" corrects by; "measured" scales it where codes have no step size.
        """
        quantized = _quantized_keys(self, codecs)
        without_step_sizes = [codec for codec in quantized if not codec.has_step_sizes]
        return bool(
            quantized if self.correction == "variance" else without_step_sizes and self.correction == "measured"
        )

    def correction_bytes(self, codecs: ChunkCodecs) -> int:
        """Bytes that a chunk in these codecs keeps for the correction."""
        per_table = ALPHA_BYTES * self.keeps_alpha(codecs) + VARIANCE_BYTES * self.head_dim * self.keeps_variance(
            codecs
        )
        return per_table * self.num_tables

    def padding_pages(self, num_tokens: int, codecs: ChunkCodecs) -> float:
        """Pages of a chunk that would be empty if its tokens filled the others; not a whole number."""
        filled = sum(
            num_heads * num_tokens / codec.page_tokens(self.page)
            for codec, num_heads in _tables(self, codecs)
            if codec is not None
        )
        return self.chunk_pages(num_tokens, codecs) - filled

    def padding_waste_ratio(self, num_tokens: int, codecs: ChunkCodecs) -> float:
        """Share of the page space of a chunk that holds no token."""
        return self.padding_pages(num_tokens, codecs) / max(1, self.chunk_pages(num_tokens, codecs))

    def bf16_bytes(self, num_tokens: int) -> int:
        """Bytes of the same tokens as dense BF16 keys and values, without any padding."""
        return 2 * 2 * num_tokens * self.num_tables * self.head_dim

    def bits_per_value(self, num_tokens: int, codecs: ChunkCodecs) -> float:
        """Stored bits per key or value element of a chunk, everything counted."""
        return 16 * self.stored_bytes(num_tokens, codecs) / self.bf16_bytes(num_tokens)


@lru_cache(maxsize=1024, typed=True)
def _table_pages(shape: KVShape, num_tokens: int, codecs: ChunkCodecs) -> tuple[int, ...]:
    pages: list[int] = []
    for codec, num_heads in _tables(shape, codecs):
        pages += [0 if codec is None else codec.num_pages(shape.page, num_tokens)] * num_heads
    return tuple(pages)


def _tables(shape: KVShape, codecs: ChunkCodecs) -> Iterator[tuple[CodecSpec | None, int]]:
    """Codecs of all tables in order, and how many heads in a row have each; None: they keep nothing."""
    for kind in KINDS:
        for layer in range(shape.num_layers):
            for heads, pair in codecs.runs(layer, slice(0, shape.num_kv_heads)):
                yield None if pair is None else pair.of(kind), heads.stop - heads.start


@lru_cache(maxsize=1024, typed=True)
def _quantized_keys(shape: KVShape, codecs: ChunkCodecs) -> tuple[CodecSpec, ...]:
    """The codecs of keys that are corrected, each once."""
    return tuple(codec for codec in codecs.used(shape.num_layers, shape.num_kv_heads, ("keys",)) if codec.is_quantized)


@lru_cache(maxsize=1024, typed=True)
def _chunk_pages(shape: KVShape, num_tokens: int, codecs: ChunkCodecs) -> int:
    return sum(_table_pages(shape, num_tokens, codecs))  # a question may be about more pages than 64 bits can count


@lru_cache(maxsize=1024, typed=True)
def _table_bounds(shape: KVShape, num_tokens: int, codecs: ChunkCodecs) -> NDArray[np.int64]:
    bounds = np.cumsum((0, *_table_pages(shape, num_tokens, codecs)), dtype=np.int64)
    bounds.flags.writeable = False
    return bounds
