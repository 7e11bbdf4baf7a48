"""What a command shares with the terminal that started it: standard streams, signals and exit codes.

stdout and stderr are made usable however the command was started: open, and able to show every character. A result
that cannot be written is an error. What is said about a run is not its result: when stderr cannot be written, because
the disk of a log is full or its reader is gone, the run goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from types import FrameType, TracebackType
from typing import Any, NoReturn

from typing_extensions import override

EXIT_SUCCESS, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
"""Failed: a video or a proof failed, or the output could not be written. Bad input: nothing was started."""

_NUM_STANDARD = 3
"""File descriptors of stdin, stdout and stderr."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Lossy(FileIO):
    """Drops what cannot be written."""

    @override
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(memoryview(data))


def prepare_streams() -> None:
    """Makes sys.stdout and sys.stderr usable, however the command was started."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < _NUM_STANDARD:
        pass  # the caller had closed it; now no file that is opened later gets its number
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        lossy = BufferedWriter(_Lossy(2, "w", closefd=False))
        encoding = getattr(sys.stderr, "encoding", None)
        sys.stderr = TextIOWrapper(lossy, encoding, errors="backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def abandon(stream: object) -> None:
    """Redirects a stream to the null device, with what its buffer still holds: the interpreter flushes it at exit."""
    assert isinstance(stream, TextIOWrapper)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def leave(code: int) -> NoReturn:
    """Ends the process with this exit code, whatever its threads are doing."""
    if any(thread.daemon and thread.name.startswith("pagedvid-") for thread in threading.enumerate()):
        # A worker is in the middle of a step. An orderly end would unwind its thread out of PyTorch's C++ code, which
        # aborts the process.
        end_at_once(code)
    raise SystemExit(code)


def end_at_once(code: int) -> NoReturn:
    """Ends the process with this exit code, without unwinding anything."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class Interrupt:
    """Ctrl-C and SIGTERM inside a `with` block: the first sets `requested`, the second raises KeyboardInterrupt."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.requested = False
        self._announce = announce
        self._handlers_before: dict[int, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # A signal can arrive in the middle of a write to stderr, which cannot be entered again: then nothing is said.
        with suppress(RuntimeError):
            self._announce("stopping after this step; once more to stop at once")

    def __enter__(self) -> Interrupt:
        self._handlers_before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            # None: a handler that was not installed from Python, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
