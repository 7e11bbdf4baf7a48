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
    step_square_HnD: Tensor | None = None
    """Square of the step that each number was rounded by; None when the levels are not uniform."""
    axes_DD: Tensor | None = None
    """Rows are the directions in which it was rounded; None: the channels."""


def min_max(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor]:
    """(values, steps) of asymmetric rounding over `dim`, step and zero in fp16; both in the shape of x."""
    low, high = x.amin(dim, keepdim=True).half().float(), x.amax(dim, keepdim=True)
    step = ((high - low) / ((1 << bits) - 1)).half().float()
    codes = ((x - low) / step.where(step > 0, 1.0)).round().clamp(0, (1 << bits) - 1)
    return low + step * codes, step.expand_as(x)
