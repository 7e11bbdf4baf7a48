"""What a quantizer gives back, and the uniform grids that several of them share.

Axes: H heads, n tokens, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """What comes back from storage."""

    values_HnD: Tensor
    bits: float
    """Bits per element: codes and everything else that has to be kept to read them."""
    step_square_HD: Tensor | None = None
    """Mean square step by channel; None when the levels are not uniform."""


def min_max(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor]:
    """(values, steps) of asymmetric rounding over `dim`, step and zero in fp16."""
    low, high = x.amin(dim, keepdim=True).half().float(), x.amax(dim, keepdim=True)
    step = ((high - low) / ((1 << bits) - 1)).half().float()
    codes = ((x - low) / step.where(step > 0, 1.0)).round().clamp(0, (1 << bits) - 1)
    return low + step * codes, step
