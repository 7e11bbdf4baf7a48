"""`pagedvid generate --plan`: how large a stream is and how many fit, from integers alone; no weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pagedvid.cache.sizes import KVShape, peak_pages, planned_peak_pages
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window, planned_peak_tokens
from pagedvid.codecs.assignment import KINDS
from pagedvid.codecs.spec import CodecSpec
from pagedvid.config.sections import CacheConfig, Config
from pagedvid.engine.requests import VideoRequest
from pagedvid.models.settle import stream_codecs
from pagedvid.units import format_bytes

if TYPE_CHECKING:
    from pagedvid.engine.protocol import ModelGeometry
    from pagedvid.engine.schedule import Schedule


COMPARED_CODECS = ("klt1.5", "klt2", "int2", "int4", "int8", "bf16", "fp32")


def plan_lines(
    config: Config, model: ModelGeometry, requests: Sequence[VideoRequest], schedule: Schedule | None = None
) -> list[str]:
    """The longest video as a stream: its pages, bytes, bits, ratio to BF16, and how many fit in the memory.

    `schedule`: that of the longest video; None: chunk by chunk over the configured window.
    """
    cache = config.cache
    num_frames = max(request.num_frames for request in requests)
    if schedule is None:
        from pagedvid.models.common.chunk_by_chunk import chunk_by_chunk

        schedule = chunk_by_chunk(model, num_frames, (1.0, 0.0), Window(cache.sink_chunks, cache.recent_chunks))
    rows = (_row(name, codecs, cache, model, schedule) for name, codecs in _choices(cache))
    return [
        *_describe(config, model, len(requests), num_frames, schedule),
        "",
        f"{'codec':8}{'bits/value':>10}{'pages':>8}{'bytes':>12}{'vs bf16':>9}   fit in {format_bytes(cache.memory)}",
        *rows,
        "",
        "pages, bytes: of one stream at its peak; fit in: streams that can run at once",
    ]


def _describe(config: Config, model: ModelGeometry, num_videos: int, num_frames: int, schedule: Schedule) -> list[str]:
    cache, tokens = config.cache, model.chunk_tokens
    tables = f"{model.num_layers} layers x {model.num_kv_heads} KV heads x {model.head_dim}"
    branches = f" x {len(model.branches)} branches" if len(model.branches) > 1 else ""
    codecs = stream_codecs(cache)
    shape = _shape(model, codecs, cache)
    pages = " and ".join(dict.fromkeys(_pages(shape, tokens, codecs.steady.of(kind, 0)) for kind in KINDS))
    padding = f"{shape.padding_waste_ratio(tokens, codecs.steady):.1%} padding"
    num_chunks = -(-num_frames // model.frames_per_chunk)
    roles = [str(codecs.steady)]
    if cache.sink_codec:
        roles.append(f"sinks {cache.sink_codec}")
    if cache.newest_codec:
        roles.append(f"newest chunk {cache.newest_codec}")
    return [
        f"model    {config.model.name}: {tables}, {model.tokens_per_frame} tokens/frame{branches}",
        f"chunk    {model.frames_per_chunk} frames = {tokens} tokens = {pages} per head and layer ({padding})",
        f"window   {_window(model, schedule)}",
        f"codecs   {', '.join(roles)}",
        f"videos   {num_videos}; the longest has {num_frames} frames = {num_chunks} chunks",
    ]


def _pages(shape: KVShape, num_tokens: int, codec: CodecSpec) -> str:
    num_pages = codec.num_pages(shape.page, num_tokens)
    return f"{num_pages} page{'s' if num_pages > 1 else ''} of {codec.page_tokens(shape.page)}"


def _window(model: ModelGeometry, schedule: Schedule) -> str:
    commits = schedule.planned_commits(model.tokens_per_frame)
    if commits is None:
        window = schedule.window
        return f"{window.sink_chunks} sink + {window.recent_chunks} recent chunks, and the one being committed"
    num_frames = planned_peak_tokens(schedule.window, commits) // model.tokens_per_frame
    return f"the model's own look-back: at most {num_frames} frames stored at once"


def _choices(cache: CacheConfig) -> list[tuple[str, StreamCodecs]]:
    """The configured codecs, then single codecs to compare with."""
    return [("as set", stream_codecs(cache)), *((codec, StreamCodecs(codec)) for codec in COMPARED_CODECS)]


def _shape(model: ModelGeometry, codecs: StreamCodecs, cache: CacheConfig) -> KVShape:
    """The model's tables on pages that suit these codecs; for the configured codecs, on pages as they are set."""
    shape = KVShape(model.num_layers, model.num_kv_heads, model.head_dim)
    shape = shape.with_frames(model.tokens_per_frame, model.frames_per_chunk).with_pages_for(codecs)
    if codecs != stream_codecs(cache):
        return shape
    rows = shape.page_rows if cache.page_rows == "auto" else int(cache.page_rows)
    return replace(shape, page_rows=rows, correction=cache.correction)


def _row(name: str, codecs: StreamCodecs, cache: CacheConfig, model: ModelGeometry, schedule: Schedule) -> str:
    shape = _shape(model, codecs, cache)
    num_branches, window = len(model.branches), schedule.window
    commits = schedule.planned_commits(model.tokens_per_frame)
    if commits is None:
        peak = peak_pages(shape, window, codecs, model.chunk_tokens, schedule.num_commits)
        dense_tokens = min(schedule.num_commits, window.max_chunks + 1) * model.chunk_tokens
    else:
        peak = planned_peak_pages(shape, window, codecs, commits)
        dense_tokens = planned_peak_tokens(window, commits)
    bits = shape.bits_per_value(model.chunk_tokens, codecs.steady)
    pages = num_branches * peak
    num_bytes = shape.page_bytes * pages
    ratio = f"{num_bytes / (num_branches * shape.bf16_bytes(dense_tokens)):.3f}" if pages else "-"
    num_fitting = str(shape.pages_in_memory(cache.memory) // pages) if pages else "any number"
    return f"{name:8}{bits:>10.2f}{pages:>8}{format_bytes(num_bytes):>12}{ratio:>9}   {num_fitting}"
