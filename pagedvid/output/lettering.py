"""Text that has to fit a line and a font: where to cut it, and what to write for letters that no font has."""

from __future__ import annotations

import shutil
import subprocess
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

ELLIPSIS = "..."
_FONTCONFIG_SECONDS = 5.0


def one_line(text: str, most: int) -> str:
    """At most `most` letters of a text, with single blanks for white space and accents joined to their letters."""
    return unicodedata.normalize("NFC", " ".join(text.split(maxsplit=most)[:most])[:most])


def shorten(text: str, room: float, width_of: Callable[[str], float]) -> str:
    """The text, cut with an ellipsis so that it is at most `room` pixels wide.

    Every letter is at least a pixel wide, so at most `room` + 1 letters are measured, by bisection.
    """
    most = max(int(room), 0) + 1
    if len(text) <= most and width_of(text) <= room:
        return text
    text = text[:most]
    length = bisect_right(range(1, len(text) + 1), room, key=lambda length: width_of(text[:length] + ELLIPSIS))
    return text[:length].rstrip() + ELLIPSIS


def escape(text: str, missing: Iterable[str]) -> str:
    r"""The text with each missing letter replaced by its code, such as \u7ea2."""
    return text.translate({ord(letter): _code(letter) for letter in missing})


def _code(letter: str) -> str:
    number = ord(letter)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


@lru_cache
def system_font(letters: frozenset[str]) -> tuple[Path, int] | None:
    """The installed font that has most of these letters according to fontconfig: its file and its index in the file.

    None without fontconfig, because then the installed fonts are not known.
    """
    program = shutil.which("fc-match")
    if program is None:
        return None
    codes = " ".join(f"{ord(letter):x}" for letter in sorted(letters))
    words = [program, "--format", "%{index} %{file}", f"sans:charset={codes}"]
    try:
        found = subprocess.run(words, capture_output=True, timeout=_FONTCONFIG_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    index, _, file = found.decode(errors="surrogateescape").partition(" ")
    return (Path(file), int(index)) if file else None
