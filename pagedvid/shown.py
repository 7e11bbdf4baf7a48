"""How messages quote what somebody wrote: long values are cut, so that the rest of the message stays readable."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

MAX_SHOWN_CHARS, MAX_PATH_CHARS = 80, 240


def short(text: str, max_chars: int = MAX_SHOWN_CHARS) -> str:
    """The text; its beginning and its end if it is longer than `max_chars`."""
    if len(text) <= max_chars:
        return text
    head = max_chars // 2 - 3
    return f"{text[:head]} ... {text[head + 5 - max_chars :]}"


def named(path: str | Path) -> str:
    """A path. Users copy it from the message, so it may be longer than other values; unprintable characters are
    escaped."""
    text = str(path)
    return short(text if text.isprintable() else ascii(text)[1:-1], MAX_PATH_CHARS)


def shown(value: object) -> str:
    """A value as Python writes it, shortened; unprintable characters are escaped."""
    return short(repr(value))


def unknown(given: str, known: Sequence[str], prefix: str = "") -> str:
    """The end of an error about an unknown name: `"sed" - did you mean "seed"? (known: seed, scale)`."""
    close = get_close_matches(given, known, n=1)
    hint = f' - did you mean "{prefix}{close[0]}"?' if close else ""
    return f'"{prefix}{short(given)}"{hint} (known: {", ".join(known)})'
