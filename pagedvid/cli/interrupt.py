"""Ctrl-C and SIGTERM: the first asks the run to stop after its current step, the second stops it at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """While its `with` block runs, `requested` says whether the user wants to stop."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.requested = False
        self._announce = announce
        self._handlers_before: dict[int, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # A signal can arrive in the middle of a write to stderr, which may not be entered again: then it goes unsaid.
        with suppress(RuntimeError):
            self._announce("stopping after this step; once more to stop at once")

    def __enter__(self) -> Interrupt:
        self._handlers_before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            # None: a handler that Python did not install, which it cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
