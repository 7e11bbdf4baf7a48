"""Step sizes in 8 bits: byte b stands for 2^((b - 160) / 6), and byte 0 for a step size of 0."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SHORT_ONE, SHORT_PER_OCTAVE = 160, 6
"""The byte of the short step size 1.0, and bytes per factor of two."""


@lru_cache(maxsize=8)
def short_step_sizes(device: torch.device) -> Tensor:
    """The 256 step sizes, ascending, float32 [256]: 0, then 1.1e-8 to 5.8e4, each 12 % above the one before.

    They reach as far down as fp16 does. If they did not, the step size of a nearly constant channel would be rounded up
    to many times the size of its values.
    """
    step_sizes = torch.exp2((torch.arange(256, dtype=torch.float64) - SHORT_ONE) / SHORT_PER_OCTAVE)
    step_sizes[0] = 0.0
    return step_sizes.float().to(device)
