"""`pagedvid generate --plan`: how large a stream is and how many fit, from integers alone; no weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import peak_pages, planned_peak_pages, window_bits_per_value
from pagedvid.cache.window import planned_peak_tokens
from pagedvid.cli.bits_words import bits_lines
from pagedvid.cli.run_result import devices_line
from pagedvid.codecs.assignment import KINDS
from pagedvid.codecs.spec import CodecSpec
from pagedvid.engine.requests import VideoRequest
from pagedvid.output.given_files import IMAGE, VIDEO
from pagedvid.units import format_bytes

if TYPE_CHECKING:
    from pagedvid.engine.protocol import ModelGeometry
    from pagedvid.engine.schedule import Schedule
    from pagedvid.models.build import RunSpec


COMPARED_CODECS = ("klt1.5", "klt2", "int2", "int4", "int8", "bf16", "fp32")


def plan_lines(spec: RunSpec, requests: Sequence[VideoRequest]) -> list[str]:
    """The longest video as a stream: its pages, bytes, bits, ratio to BF16, and how many fit in the memory.

    Raises ConfigError.
    """
    memory = spec.config.cache.memory
    num_frames = max(request.num_frames for request in requests)
    num_worked_on = max(request.num_frames + _most_given(request, spec) for request in requests)
    schedule = spec.model.schedule(num_worked_on, spec.config.engine.denoise_steps, spec.window)
    choices = [("as set", spec.cache.codecs), *((codec, StreamCodecs(codec)) for codec in COMPARED_CODECS)]
    rows = (_row(name, codecs, _shape(spec, codecs), spec, schedule) for name, codecs in choices)
    return [
        *_describe(spec, len(requests), num_frames, schedule),
        "",
        f"{'codec':8}{'bits/value':>10}{'pages':>8}{'bytes':>12}{'vs bf16':>9}   fit in {format_bytes(memory)}",
        *rows,
        "",
        "pages, bytes: of one stream at its peak; fit in: streams that can run at once",
    ]


def _most_given(request: VideoRequest, spec: RunSpec) -> int:
    """The most latent frames that it can go on from: one chunk of an image, as many as the window keeps of a video."""
    num_chunks = 1 if IMAGE in request.inputs else 0
    if VIDEO in request.inputs:
        num_chunks = spec.model.schedule(1, None, spec.window).window.max_chunks
    return num_chunks * spec.model.geometry.frames_per_chunk


def _describe(spec: RunSpec, num_videos: int, num_frames: int, schedule: Schedule) -> list[str]:
    num_devices = spec.config.generate.devices
    model, codecs, shape = spec.model.geometry, spec.cache.codecs, spec.cache.shape
    tokens = model.chunk_tokens
    tables = f"{model.num_layers} layers x {model.num_kv_heads} KV heads x {model.head_dim}"
    branches = f" x {len(model.branches)} branches" if len(model.branches) > 1 else ""
    padding = f"{shape.padding_waste_ratio(tokens, codecs.steady):.1%} padding"
    num_chunks = -(-num_frames // model.frames_per_chunk)
    roles = [str(codecs.steady) if spec.spending is None else f"{spec.config.cache.codec}, head by head"]
    if codecs.sink:
        roles.append(f"sinks {codecs.sink}")
    if codecs.newest:
        roles.append(f"newest chunk {codecs.newest}")
    return [
        f"model    {spec.config.model.name}: {tables}, {model.tokens_per_frame} tokens/frame{branches}",
        f"chunk    {model.frames_per_chunk} frames = {tokens} tokens = {_chunk_pages(spec, tokens)} ({padding})",
        f"window   {_window(model, schedule)}",
        f"codecs   {', '.join(roles)}",
        *bits_lines(spec),
        *([f"devices  {devices_line(num_devices)}"] if num_devices > 1 else []),
        f"videos   {num_videos}; the longest has {num_frames} frames = {num_chunks} chunks",
    ]


def _chunk_pages(spec: RunSpec, tokens: int) -> str:
    codecs, shape = spec.cache.codecs.steady, spec.cache.shape
    if spec.spending is not None:
        return f"{shape.chunk_pages(tokens, codecs)} pages in all heads and layers"
    pages = " and ".join(dict.fromkeys(_pages(shape, tokens, codecs.of(kind, 0)) for kind in KINDS))
    return f"{pages} per head and layer"


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


def _shape(spec: RunSpec, codecs: StreamCodecs) -> KVShape:
    """The cache's tables: for the configured codecs on pages as they are set, for others on pages that suit them."""
    return spec.cache.shape if codecs == spec.cache.codecs else spec.cache.shape.with_pages_for(codecs)


def _row(name: str, codecs: StreamCodecs, shape: KVShape, spec: RunSpec, schedule: Schedule) -> str:
    model, window = spec.model.geometry, schedule.window
    num_branches = len(model.branches)
    commits = schedule.planned_commits(model.tokens_per_frame)
    if commits is None:
        peak = peak_pages(shape, window, codecs, model.chunk_tokens, schedule.num_commits)
        dense_tokens = min(schedule.num_commits, window.max_chunks + 1) * model.chunk_tokens
    else:
        peak = planned_peak_pages(shape, window, codecs, commits)
        dense_tokens = planned_peak_tokens(window, commits)
    bits = window_bits_per_value(shape, window, codecs, model.chunk_tokens)
    pages = num_branches * peak
    num_bytes = shape.page_bytes * pages
    ratio = f"{num_bytes / (num_branches * shape.bf16_bytes(dense_tokens)):.3f}" if pages else "-"
    num_fitting = str(shape.pages_in_memory(spec.config.cache.memory) // pages) if pages else "any number"
    return f"{name:8}{bits:>10.2f}{pages:>8}{format_bytes(num_bytes):>12}{ratio:>9}   {num_fitting}"
