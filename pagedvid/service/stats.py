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
    )
