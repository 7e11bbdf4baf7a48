"""How errors and log records become lines that a user reads."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from typing_extensions import override

from pagedvid.errors import PagedvidError
from pagedvid.shown import short

MAX_CHARS = 600


def error_line(message: str) -> str:
    """An error in one line of at most `MAX_CHARS`: its beginning, and its end, which says what to change.

    Characters that a terminal would obey instead of showing them are escaped.
    """
    words = " ".join(message.split())
    return short("".join(char if char.isprintable() else repr(char)[1:-1] for char in words), MAX_CHARS)


def reason(error: Exception) -> str:
    """The end of a line such as `failed  <what>  <reason>`.

    Of a file error it is only what the system says, because the line names the file; of an unexpected error it names
    the class too.
    """
    if isinstance(error, OSError) and error.strerror:
        return " ".join(error.strerror.split())
    message = " ".join(str(error).split())
    if isinstance(error, PagedvidError | OSError) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@contextmanager
def logs_as_notes(note: Callable[[str], None]) -> Iterator[None]:
    """Passes the package's log records and Python's warnings to `note`, one line each.

    Errors of the engine are left out: each is a video that failed, and the run reports it from the engine's output.
    """

    class Handler(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR and record.name.startswith("pagedvid.engine"):
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
