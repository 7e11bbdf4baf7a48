"""The one line that a wrong command ends with: printable, and short enough to be read whatever was given."""

from __future__ import annotations

from pagedvid.shown import short

MAX_CHARS = 600


def error_line(message: str) -> str:
    """The message in one line. What a terminal would obey rather than show is escaped; a message that a library made
    long keeps its beginning and its end, which says what to change."""
    words = " ".join(message.split())
    return short("".join(char if char.isprintable() else repr(char)[1:-1] for char in words), MAX_CHARS)
