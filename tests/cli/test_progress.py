"""What a run shows while it goes on."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from pagedvid.cli import progress
from pagedvid.cli.bars import BarView
from pagedvid.cli.progress import LineView, Status
from pagedvid.cli.progress_view import progress_view

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
    assert isinstance(progress_view(), LineView)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_there_are_bars(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    assert isinstance(progress_view(), BarView)


def test_on_a_terminal_without_rich_there_are_lines_and_the_reason(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.delitem(sys.modules, "pagedvid.cli.bars")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert isinstance(progress_view(), LineView)
    assert "bars need the library rich" in sys.stderr.getvalue() and "pip install rich" in sys.stderr.getvalue()
