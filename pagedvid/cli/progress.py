"""What the user sees of a run: bars on a terminal (bars.py), plain lines anywhere else. All of it goes to stderr.

It can never end a run: when the terminal is gone or the disk of the log is full, the run goes on without it.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

LINE_INTERVAL_SECONDS = 5.0
"""How often a run without a terminal reports its status."""

if_anyone_sees = suppress(OSError)
"""Drops what cannot be shown; the manifest has all of it."""


@dataclass(frozen=True)
class Status:
    """The status of a run."""

    videos_ended: int
    num_videos: int
    chunks_done: int
    num_chunks: int
    pages_used: int
    num_pages: int
    frames_per_second: float


class ProgressView(Protocol):
    """Shows notes (one line each) and the status."""

    def note(self, line: str) -> None:
        """Prints a line that stays."""
        ...

    def update(self, status: Status) -> None:
        """Shows the status."""
        ...

    def __enter__(self) -> ProgressView: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LineView:
    """A line per note and a status line every few seconds."""

    def __init__(self) -> None:
        self._last_report = time.monotonic()

    def note(self, line: str) -> None:
        """Prints the line."""
        if sys.stderr is not None:  # None when the run was started with `2>&-`
            with if_anyone_sees:
                print(f"{line}\n", end="", file=sys.stderr, flush=True)  # at once: two threads may say something

    def update(self, status: Status) -> None:
        """Prints the status if the last one is at least `LINE_INTERVAL_SECONDS` old."""
        if time.monotonic() - self._last_report < LINE_INTERVAL_SECONDS:
            return
        self._last_report = time.monotonic()
        self.note(
            f"videos {status.videos_ended}/{status.num_videos}  chunks {status.chunks_done}/{status.num_chunks}  "
            f"pages {status.pages_used}/{status.num_pages}  {status.frames_per_second:.1f} frames/s"
        )

    def __enter__(self) -> LineView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to remove."""
