"""Bytes as people write them ("24GiB") and as programs count them."""

from __future__ import annotations

import re
from decimal import Decimal

from pagedvid.errors import ConfigError
from pagedvid.shown import shown

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

MAX_BYTES = 1024 * TIB
"""More is a typing mistake."""

_PATTERN = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)", re.ASCII)


def parse_bytes(text: str | int) -> int:
    """Reads "2GiB", "1.5 MB" or 4096 as bytes; a plain number counts bytes, and fractions of a byte are dropped.

    Raises `ConfigError`.
    """
    num_bytes = text if isinstance(text, int) and not isinstance(text, bool) else _from_text(str(text))
    if num_bytes > MAX_BYTES:
        raise ConfigError(f"{shown(text)} is too large a size: at most 1024TiB is allowed")
    return num_bytes


def _from_text(text: str) -> int:
    match = _PATTERN.fullmatch(text.strip())
    unit = _unit(match[2]) if match else None
    if match is None or unit is None:
        allowed = ", ".join(name for name in UNITS if name != "B")
        raise ConfigError(f"{shown(text)} is not a size: write a number and a unit, such as 2GiB (units: {allowed})")
    return int(Decimal(match[1]) * unit)


def _unit(name: str) -> int | None:
    """Bytes of a unit in upper or lower case; no name means bytes. None: there is no such unit."""
    return {unit.lower(): num_bytes for unit, num_bytes in UNITS.items()}.get(name.lower() or "b")


def format_bytes(num_bytes: int) -> str:
    """Three significant digits in the largest binary unit that fits: 1536 -> "1.50 KiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        amount = num_bytes / UNITS[unit]
        if amount >= 1:
            digits = 2 if amount < 10 else 1 if amount < 100 else 0
            return f"{amount:.{digits}f} {unit}"
    return f"{num_bytes} B"


def format_setting_bytes(num_bytes: int) -> str:
    """The exact size in the largest unit that divides it, in the form `parse_bytes` reads: 2147483648 -> "2GiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if num_bytes and num_bytes % UNITS[unit] == 0:
            return f"{num_bytes // UNITS[unit]}{unit}"
    return str(num_bytes)
