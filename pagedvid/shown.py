"""How messages quote what somebody wrote: long values are cut, so that the rest of the message stays readable."""

from __future__ import annotations

from pathlib import Path

MAX_SHOWN_CHARS, MAX_PATH_CHARS = 80, 240


def short(text: str, max_chars: int = MAX_SHOWN_CHARS) -> str:
    """The text, or its beginning and its end when it is longer than `max_chars`."""
    if len(text) <= max_chars:
        return text
    head = max_chars // 2 - 3
    return f"{text[:head]} ... {text[head + 5 - max_chars :]}"


def named(path: str | Path) -> str:
    """A path, which may be longer than other values, because it is copied from the message. What is not printable is
    escaped."""
    text = str(path)
    return short(text if text.isprintable() else ascii(text)[1:-1], MAX_PATH_CHARS)


def shown(value: object) -> str:
    """A value as Python writes it, shortened. What is not printable is escaped."""
    return short(repr(value))
