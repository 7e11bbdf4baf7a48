"""The section `serve`: what clients of `pagedvid serve` may do, and how long the service waits for them."""

from __future__ import annotations

from dataclasses import dataclass

from pagedvid.config.rules import nothing, number, one_of, setting, size, text, whole
from pagedvid.config.section import Section
from pagedvid.units import MIB

_HOST = r"[A-Za-z0-9._-]+"
_ORIGIN = rf"https?://{_HOST}(:[0-9]{{1,5}})?"


@dataclass(frozen=True)
class ServeConfig(Section):
    """What clients of the service may do, and how long it waits for them."""

    name_in_file = "serve"

    max_queued: int = setting(64, whole(1, 10**6))
    """Most videos and sessions that wait for their turn; one more is refused with status 429."""
    max_live: int = setting(16, whole(1, 10**4))
    """Most live sessions at once; one more is refused with status 429."""
    max_frames: int = setting(2400, whole(1, 100_000))
    """Most frames of one video, what it shares with others included."""
    max_prompt_characters: int = setting(4000, whole(1, 10**6))
    """Longest prompt."""
    max_continuations: int = setting(8, whole(1, 1000))
    """Most continuations of one fork."""
    max_body: int = setting(1 * MIB, size())
    """Largest body of a request, and largest message of a WebSocket."""
    max_connections: int = setting(512, whole(1, 60_000))
    """Most connections at once; one more is closed at once."""
    header_seconds: float = setting(10.0, number(0.1, 3600))
    """How long a connection may be silent, or take for the head of a request."""
    body_seconds: float = setting(30.0, number(0.1, 3600))
    """How long the body of a request may take."""
    heartbeat_seconds: float = setting(15.0, number(0.1, 3600))
    """Longest silence of a stream of events; then a comment is sent, so that no proxy closes the connection."""
    grace_seconds: float = setting(30.0, number(0, 86_400))
    """How long a live session goes on when its last viewer is gone; then it is paused."""
    max_ahead_seconds: float | str = setting("auto", one_of("auto") | number(0.1, 86_400))
    """How far a live session runs ahead of what its viewer reports as played; then it waits. auto = 1 for a model whose
    videos are steered while they are made, so that they follow soon; 10 for all others."""
    checkpoint_chunks: int = setting(8, whole(1, 10**6))
    """Chunks of a video between two checkpoints; after a crash at most as many are made again."""
    hosts: str | None = setting(None, nothing() | text("host names with commas between", rf"{_HOST}(,{_HOST})*"))
    """Names by which clients may call the service; null = those of this machine for a loopback address, else any."""
    cors_origins: str | None = setting(
        None, nothing() | text("origins such as https://a.example, with commas between", rf"{_ORIGIN}(,{_ORIGIN})*")
    )
    """Other web sites whose pages may call the service from a browser; null = none."""
