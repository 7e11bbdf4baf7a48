"""A LoRA among the settings: PATH, or PATH:SCALE."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pagedvid.files.text import check_text

MAX_SCALE = 100.0
"""Largest absolute value of a scale; more is a typing mistake."""


@dataclass(frozen=True)
class Lora:
    """A file whose changes are added to the weights when they are loaded, `scale` times."""

    path: str
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.path}:{self.scale!r}"


def read_lora(written: object) -> Lora:
    """Reads "style.safetensors" and "style.safetensors:0.8". Raises ValueError.

    What follows the last colon is the scale if it is written like a number, and otherwise a part of the path.
    """
    if not isinstance(written, str) or not written:
        raise ValueError
    check_text(written)
    parts = re.fullmatch(r"(?s)(.+):([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)", written)
    if parts is None:
        return Lora(written)
    scale = float(parts[2])
    if not math.isfinite(scale) or abs(scale) > MAX_SCALE:
        raise ValueError
    return Lora(parts[1], scale)
