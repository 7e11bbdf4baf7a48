"""Which view of a run's progress suits where it is shown."""

from __future__ import annotations

import sys

from pagedvid.cli.progress import LineView, ProgressView


def progress_view() -> ProgressView:
    """Bars when stderr is a terminal, else lines. Bars need the library rich; without it a terminal gets lines too."""
    if sys.stderr is None or not sys.stderr.isatty():
        return LineView()
    try:
        from pagedvid.cli.bars import BarView
    except ImportError as error:
        view = LineView()
        view.note(f"progress is shown in lines, because bars need the library rich ({error}): pip install rich")
        return view
    return BarView()
