"""stdout and stderr as the rest of the command line expects them: open, and able to show every character.

A result that cannot be written is an error. What is said about a run is not its result: when it cannot be written,
because a log's disk is full or its reader has gone, the run goes on.
"""

from __future__ import annotations

import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

_NUM_STANDARD = 3
"""File descriptors of stdin, stdout and stderr."""


class _Unheard(FileIO):
    """Drops what cannot be written."""

    def write(self, data: Any) -> int:
        """The number of bytes taken, which is all of them."""
        try:
            return super().write(data) or 0
        except OSError:
            return len(memoryview(data))


def prepare_streams() -> None:
    """Makes sys.stdout and sys.stderr usable, however the command was started."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < _NUM_STANDARD:
        pass  # closed by the caller: now no file that is opened later takes its number
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        unheard = BufferedWriter(_Unheard(2, "w", closefd=False))
        encoding = getattr(sys.stderr, "encoding", None)
        sys.stderr = TextIOWrapper(unheard, encoding, errors="backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def abandon(stream: object) -> None:
    """Sends what a stream still holds, and everything after it, nowhere: the interpreter flushes it once more."""
    assert isinstance(stream, TextIOWrapper)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
