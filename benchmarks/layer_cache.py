"""Caches of single layers for the GPU benchmarks, in any codec: klt gets made-up tables, whose numbers cost no time."""

from __future__ import annotations

from typing import Any

import torch

from layer_shapes import LayerShape
from pagedvid.cache.sizes import stream_bytes
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.codecs.base import make_codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.codecs.page import PageFormat, block_frames
from pagedvid.paged_kv_cache import PagedKVCache


def layer_cache(
    shape: LayerShape,
    codec: str,
    window: Window,
    device: torch.device,
    *,
    num_layers: int = 1,
    num_streams: int = 1,
    backend: str = "auto",
    **settings: Any,
) -> PagedKVCache:
    """Room for the streams' windows. `settings`: of `CacheSpec`; the correction is the one that suits the codec."""
    codecs = StreamCodecs(codec)
    spec = CacheSpec(
        num_layers,
        shape.kv_heads,
        shape.head_dim,
        num_query_heads=shape.query_heads,
        codecs=codecs,
        tokens_per_frame=shape.rows * shape.columns,
        frames_per_block=block_frames(shape.frames),
        **{"correction": codecs.correction, **settings},
    )
    memory = num_streams * stream_bytes(spec.shape, window, spec.codecs, shape.chunk_tokens)
    return PagedKVCache(spec, memory, device, backend=backend, book=_book(codec, spec))


def _book(codec: str, spec: CacheSpec) -> CodecBook:
    page = spec.shape.page
    codecs = ChunkCodecs.read(codec)
    calibrated = {spec for spec in codecs.all if spec.needs_tables}
    own = {each.name: make_codec(each, page, _tables(page, spec.num_kv_heads)) for each in calibrated}
    return CodecBook(page, spec.num_kv_heads, own=own)


def _tables(page: PageFormat, num_heads: int) -> KltTables:
    """Falling deviations, and directions of no meaning."""
    generator = torch.Generator().manual_seed(0)
    size = page.frames_per_block * page.head_dim
    directions, _ = torch.linalg.qr(torch.randn(num_heads, page.head_dim, page.head_dim, generator=generator))
    deviation_hN = torch.exp(-4 * torch.rand(num_heads, size, generator=generator))
    return KltTables(
        BlockLayout(page.tokens_per_frame, page.frames_per_block),
        deviation_hN.square().sort(-1, descending=True).values.mean(0),
        torch.zeros(num_heads, page.head_dim),
        directions,
        deviation_hN,
        deviation_hN.argsort(-1, descending=True),
    )
