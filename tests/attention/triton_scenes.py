"""Caches that the tests of the kernels share."""

from __future__ import annotations

from pagedvid.attention.backend import AttentionBackend
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.paged_kv_cache import PagedKVCache

SCRATCH_BYTES = 8 * 2**20


def with_kernels(cache: PagedKVCache, scratch_bytes: int = SCRATCH_BYTES) -> PagedKVCache:
    """The cache, read and written by kernels, wherever its pool is."""
    cache.backend = AttentionBackend("triton", cache.pool, cache.spec, cache.book, scratch_bytes)
    return cache


def small_cache(codecs: StreamCodecs | str = "int2", *, layers: int = 1, group: int = 1, **settings) -> PagedKVCache:
    codecs = StreamCodecs(codecs) if isinstance(codecs, str) else codecs
    spec = CacheSpec(layers, 2, 32, num_query_heads=2 * group, codecs=codecs, **settings)
    return with_kernels(PagedKVCache(spec, "2MiB"))
