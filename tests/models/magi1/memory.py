"""Bytes of keys and values per stream: what pagedvid keeps, against the buffer of the published program.

The published program holds one bf16 buffer per layer for the whole video. Its schedule reads little of it: with four
chunks in flight one stored chunk, with one in flight four (`noise2clean_kvrange`), however long the video is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import planned_peak_pages
from pagedvid.models.magi1.schedule import magi_schedule
from pagedvid.models.magi1.spec import MagiConfig


@dataclass(frozen=True)
class StreamBytes:
    """Of one video."""

    original_bytes: int
    """The whole-video buffer, bf16."""
    stored_bytes: int
    """Pages at the peak: codes, step sizes, zero points, padding of partial pages."""

    @property
    def ratio(self) -> float:
        """How many times less."""
        return self.original_bytes / self.stored_bytes


def stream_bytes(
    config: MagiConfig, seconds: float, codec: str, window_size: int | None = None, num_steps: int | None = None
) -> StreamBytes:
    """A video of so many seconds. `window_size`: chunks in flight, None: as configured.

    The stored bytes are those that the cache reserves: they come from the schedule, as at admission.
    """
    network, frames = config.network, config.frames
    sampling = config.sampling if window_size is None else replace(config.sampling, window_size=window_size)
    num_frames = ceil(seconds * frames.fps / frames.temporal_downsample_factor)
    schedule = magi_schedule(sampling, frames.chunk_width, num_steps, num_frames)
    codecs, shape = StreamCodecs(codec), KVShape(network.num_layers, network.num_query_groups, network.kv_channels)
    shape = shape.with_frames(frames.tokens_per_frame, frames.chunk_width).with_pages_for(codecs)
    commits = schedule.planned_commits(frames.tokens_per_frame)
    assert commits is not None  # this schedule is always planned
    pages = planned_peak_pages(shape, schedule.window, codecs, commits)
    num_chunks = -(-num_frames // frames.chunk_width)
    buffer_tokens = num_chunks * frames.chunk_width * frames.tokens_per_frame
    return StreamBytes(shape.bf16_bytes(buffer_tokens), shape.page_bytes * pages)
