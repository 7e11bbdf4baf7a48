"""Caches that the tests of the GPU backends share."""

from __future__ import annotations

from pagedvid.attention.fused_backend import FusedBackend
from pagedvid.attention.triton_backend import TritonBackend
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.paged_kv_cache import PagedKVCache

BACKENDS = [TritonBackend, FusedBackend]


def with_backend(kind: type[TritonBackend], cache: PagedKVCache) -> PagedKVCache:
    cache.backend = kind(cache.pool, cache.spec, cache.book, 0)
    return cache


def small_cache(
    kind: type[TritonBackend], codecs: StreamCodecs | str = "int2", *, layers: int = 1, group: int = 1, **settings
) -> PagedKVCache:
    codecs = StreamCodecs(codecs) if isinstance(codecs, str) else codecs
    spec = CacheSpec(layers, 2, 32, num_query_heads=2 * group, codecs=codecs, **settings)
    return with_backend(kind, PagedKVCache(spec, "2MiB"))
