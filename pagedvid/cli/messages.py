"""How errors and log records become lines that a user reads."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from typing_extensions import override

from pagedvid import errors
from pagedvid.shown import short

MAX_CHARS = 600
REPORTED = ("pagedvid.engine", "pagedvid.service")
"""Loggers whose errors a run reports itself."""


def error_line(message: str) -> str:
    """An error in one line of at most `MAX_CHARS`: its beginning, and its end, which says what to change.

    Characters that a terminal would obey instead of showing them are escaped.
    """
    words = one_line(message)
    return short("".join(char if char.isprintable() else repr(char)[1:-1] for char in words), MAX_CHARS)


def reason(error: Exception) -> str:
    """The end of a line such as `failed  <what>  <reason>`.

    Of a file error it is only what the system says, because the line names the file; of an unexpected error it names
    the class too.
    """
    if isinstance(error, OSError):
        return one_line(error.strerror or str(error)) or type(error).__name__
    return reason_told(type(error).__name__, str(error))


def reason_told(kind: str, message: str) -> str:
    """The same for an error that is known only by its class name and its message."""
    message = one_line(message)
    if message and hasattr(errors, kind):
        return message
    return f"{kind}: {message}" if message else kind


def one_line(text: str) -> str:
    """The words of a text with single spaces between them."""
    return " ".join(text.split())


@contextmanager
def logs_as_notes(note: Callable[[str], None]) -> Iterator[None]:
    """Passes the package's log records and Python's warnings to `note`, one line each.

    Errors of the engine and its worker are left out: the run reports each of them from the worker's events.
    """

    class Handler(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR and record.name.startswith(REPORTED):
                return
            note(f"{'warning ' if record.levelno == logging.WARNING else ''}{record.getMessage()}")

    logger, handler = logging.getLogger("pagedvid"), Handler(logging.INFO)
    level_before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: note(f"warning {message}")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)
