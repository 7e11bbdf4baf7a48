"""`pagedvid generate --plan`: what a stream takes and how many fit, from integers alone (no weights are loaded)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pagedvid.config import CacheConfig, Config
from pagedvid.engine.requests import VideoRequest
from pagedvid.geometry import (
    BITS_PER_VALUE,
    KVShape,
    RoleCodecs,
    Window,
    padding_waste_ratio,
    page_bytes,
    page_tokens,
    pages_for_tokens,
    pages_in_memory,
    peak_pages,
)
from pagedvid.units import format_bytes

if TYPE_CHECKING:
    from pagedvid.models.base import ModelGeometry


def plan_lines(config: Config, model: ModelGeometry, requests: Sequence[VideoRequest]) -> list[str]:
    """The longest of the videos as a stream: its pages, bytes, bits, ratio to BF16, and how many fit in the memory."""
    cache = config.cache
    num_frames = max(request.num_frames for request in requests)
    num_chunks = -(-num_frames // model.frames_per_chunk)
    return [
        *_describe(config, model, len(requests), num_frames, num_chunks),
        "",
        f"{'codec':8}{'bits/value':>10}{'pages':>8}{'bytes':>12}{'vs bf16':>9}   fit in {format_bytes(cache.memory)}",
        *(_row(name, codecs, cache, model, num_chunks) for name, codecs in _choices(cache)),
        "",
        "pages, bytes: of one stream at its peak; fit: streams that run at once",
    ]


def _describe(config: Config, model: ModelGeometry, num_videos: int, num_frames: int, num_chunks: int) -> list[str]:
    cache, codec, tokens = config.cache, config.cache.codec, model.chunk_tokens
    tables = f"{model.num_layers} layers x {model.num_kv_heads} KV heads x {model.head_dim}"
    branches = f" x {len(model.branches)} branches" if len(model.branches) > 1 else ""
    num_pages = pages_for_tokens(tokens, codec)
    pages = f"{num_pages} page{'s' if num_pages > 1 else ''} of {page_tokens(codec)}"
    padding = f"{padding_waste_ratio(tokens, codec):.1%} padding"
    codecs = [codec]
    if cache.sink_codec:
        codecs.append(f"sinks {cache.sink_codec}")
    if cache.newest_codec:
        codecs.append(f"newest chunk {cache.newest_codec}")
    return [
        f"model    {config.model.name}: {tables}, {model.tokens_per_frame} tokens/frame{branches}",
        f"chunk    {model.frames_per_chunk} frames = {tokens} tokens = {pages} per head and layer ({padding})",
        f"window   {cache.sink_chunks} sink + {cache.recent_chunks} recent chunks, and the one being committed",
        f"codecs   {', '.join(codecs)}",
        f"videos   {num_videos}; the longest has {num_frames} frames = {num_chunks} chunks",
    ]


def _choices(cache: CacheConfig) -> list[tuple[str, RoleCodecs]]:
    """The configured codecs, then every codec alone to compare with."""
    chosen = RoleCodecs(cache.codec, cache.sink_codec, cache.newest_codec)
    alone = [(codec, RoleCodecs(codec)) for codec in reversed(BITS_PER_VALUE)]
    return [("as set", chosen), *alone]


def _row(name: str, codecs: RoleCodecs, cache: CacheConfig, model: ModelGeometry, num_chunks: int) -> str:
    shape = KVShape(model.num_layers, model.num_kv_heads, model.head_dim)
    window = Window(cache.sink_chunks, cache.recent_chunks)
    num_branches, num_commits = len(model.branches), num_chunks - 1  # nobody reads the last chunk
    bits = shape.bits_per_value(model.chunk_tokens, codecs.history)
    pages = num_branches * peak_pages(shape, window, codecs, model.chunk_tokens, num_commits)
    num_bytes = 2 * page_bytes(model.head_dim) * pages
    dense_bytes = num_branches * min(num_commits, window.max_chunks + 1) * shape.bf16_bytes(model.chunk_tokens)
    ratio = f"{num_bytes / dense_bytes:.3f}" if pages else "-"
    num_fitting = str(pages_in_memory(cache.memory, model.head_dim) // pages) if pages else "any number"
    return f"{name:8}{bits:>10.2f}{pages:>8}{format_bytes(num_bytes):>12}{ratio:>9}   {num_fitting}"
