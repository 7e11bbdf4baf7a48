"""What a run shows while it goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pagedvid.cli import progress
from pagedvid.cli.progress import BarView, LineView, Status

STATUS = Status(3, 8, 37, 96, pages_used=412, num_pages=2048, frames_per_second=23.4)


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)


def test_bars_count_videos_chunks_and_pages(terminal):
    with BarView(terminal) as view:
        view.note("attention backend: torch")
        view.update(STATUS)
        view.note("done    [red]001[/red]  48 frames")
    shown = terminal.file.getvalue()
    for part in ("3/8", "37/96", "412/2048", "23.4 frames/s", "done    [red]001[/red]  48 frames"):
        assert part in shown


def test_nothing_is_drawn_before_there_is_something_to_show(terminal):
    with BarView(terminal) as view:
        view.note("loading")
    assert terminal.file.getvalue() == "loading\n"


def test_lines_come_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 6.0, 6.0, 7.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with LineView() as view:
        view.update(STATUS)
        view.update(STATUS)
        view.update(STATUS)
    assert capsys.readouterr().err == "videos 3/8  chunks 37/96  pages 412/2048  23.4 frames/s\n"


class Gone(io.StringIO):
    """A terminal that was closed, or a log on a full disk."""

    def write(self, text):
        raise OSError("gone")

    flush = write


@pytest.mark.parametrize("kind", ["bars", "lines"])
def test_what_cannot_be_shown_goes_unsaid(monkeypatch, kind):
    monkeypatch.setattr("sys.stderr", Gone())
    monkeypatch.setattr(progress, "LINE_INTERVAL_SECONDS", 0.0)
    with BarView(Console(file=Gone(), force_terminal=True)) if kind == "bars" else LineView() as view:
        view.note("one")
        view.update(STATUS)
        view.note("two")


def test_without_stderr_nothing_is_said_on_stdout(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", None)
    with LineView() as view:
        view.note("one")
    assert capsys.readouterr().out == ""


def test_without_a_terminal_there_are_lines():
    assert isinstance(progress.progress_view(), LineView)
