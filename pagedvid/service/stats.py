"""What a worker says about itself: numbers that are published after every step and may be read from any thread."""

from __future__ import annotations

from dataclasses import dataclass

from pagedvid.engine.engine import Engine
from pagedvid.engine.pace import TokenSeconds
from pagedvid.engine.requests import EngineStats, VideoStatus

STARTING, WORKING, REBUILDING, STOPPED, DEAD = "starting", "working", "rebuilding", "stopped", "dead"
"""States of a worker. Dead: its engine broke and could not be built again; a new process has to go on."""


@dataclass(frozen=True)
class PoolStats:
    """Every page is free, reserved or used."""

    num_pages: int
    page_bytes: int
    free_pages: int
    """Promised to nobody."""
    reserved_pages: int
    """Promised to a video that has not taken them yet."""
    used_pages: int
    """They hold keys or values."""
    stored_bytes: int
    """What the used pages hold, shared chunks once."""
    bf16_bytes: int
    """The same tokens as dense BF16."""
    swapped_bytes: int
    """Of videos in host memory."""
    host_bytes: int
    """What host memory may hold of them; 0: nothing is swapped."""
    shared_pages: int
    """Used pages that more than one video holds, each counted once."""
    num_evicted_chunks: int
    """Chunks that left the windows of videos so far."""


@dataclass(frozen=True)
class CacheInfo:
    """What the cache of an engine is like; the same for its whole life."""

    model: str
    codecs: str
    """Of most of the history: "int2", or for keys and values separately "int4/int2"."""
    page_bytes: int
    sink_chunks: int
    recent_chunks: int


@dataclass(frozen=True)
class Durations:
    """A histogram of times."""

    bounds_seconds: tuple[float, ...]
    """Ascending."""
    counts: tuple[int, ...]
    """Times of at most each bound and more than the one before; in the end, those above all bounds."""
    sum_seconds: float


@dataclass(frozen=True)
class WorkerStats:
    """One moment of a worker."""

    state: str
    reason: str = ""
    """Of the latest rebuilding or of its end; empty when nothing went wrong."""
    num_rebuilds: int = 0
    """How often the engine broke."""
    pool: PoolStats | None = None
    """None without an engine."""
    videos: tuple[VideoStatus, ...] = ()
    """As last known."""
    engine: EngineStats | None = None
    """Counted from the latest rebuilding on; None without an engine."""
    token_seconds: TokenSeconds | None = None
    """None until enough steps were measured."""
    cache: CacheInfo | None = None
    """None without an engine."""
    queue: Durations | None = None
    """How long videos waited before they began; None before the first engine."""


def pool_stats(engine: Engine, videos: tuple[VideoStatus, ...]) -> PoolStats:
    """The engine's pool and its host memory."""
    cache = engine.cache.stats()
    return PoolStats(
        num_pages=cache.num_pages,
        page_bytes=cache.page_bytes,
        free_pages=cache.num_pages - cache.pages_reserved,
        reserved_pages=cache.pages_reserved - cache.pages_used,
        used_pages=cache.pages_used,
        stored_bytes=cache.stored_bytes,
        bf16_bytes=cache.bf16_bytes,
        swapped_bytes=sum(video.host_bytes for video in videos),
        host_bytes=engine.host_memory.num_bytes,
        shared_pages=cache.pages_shared,
        num_evicted_chunks=cache.num_evicted_chunks,
    )


def cache_info(engine: Engine) -> CacheInfo:
    """What the engine's cache is like."""
    spec, window = engine.cache.spec, engine.window
    return CacheInfo(
        engine.model.name,
        str(spec.codecs.history),
        spec.shape.page_bytes,
        window.sink_chunks,
        window.recent_chunks,
    )
