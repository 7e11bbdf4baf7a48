"""Progress bars on a terminal. Only this file imports `rich`, and only a run on a terminal imports this file."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from pagedvid.cli.progress import Status, if_anyone_sees

_BAR_WIDTH = 36
"""Leaves room at the end of a line of 80, where the "^C" that a terminal echoes must not break the bars."""


class BarView:
    """Three bars that are redrawn in place and disappear at the end."""

    def __init__(self, console: Console | None = None) -> None:
        """`console`: where to draw; None: on stderr."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=_BAR_WIDTH),
            TextColumn("{task.completed}/{task.total}", justify="right"),
            TextColumn("{task.fields[remark]}"),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._bars = {
            name: self._progress.add_task(name, total=None, remark="") for name in ("videos", "chunks", "pages")
        }

    def note(self, line: str) -> None:
        """Prints a line above the bars."""
        with if_anyone_sees:
            self._progress.console.print(escape(line), highlight=False, soft_wrap=True)

    def update(self, status: Status) -> None:
        """Redraws the bars; the first call makes them appear."""
        with if_anyone_sees:
            self._progress.start()
            self._set("videos", status.videos_ended, status.num_videos)
            self._set("chunks", status.chunks_done, status.num_chunks, f"{status.frames_per_second:.1f} frames/s")
            self._set("pages", status.pages_used, status.num_pages, "in use")

    def _set(self, name: str, completed: int, total: int, remark: str = "") -> None:
        self._progress.update(self._bars[name], completed=completed, total=total, remark=remark)

    def __enter__(self) -> BarView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with if_anyone_sees:
            self._progress.stop()
