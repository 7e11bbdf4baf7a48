"""How a page stores the steps of its channels: whole rows of D bytes.

                  16 bits: fp16                      8 bits, b: 0 for 0, else 2^((b - 160) / 6)
    by channel    2 rows                             1 row
    by pair       1 row; channels c and c + D/2,     1 row, the second half of it zero bytes
                  a rotary pair, share the larger

Every step is rounded up, so that half a stored step bounds the rounding error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pagedvid.codecs.base import round_up_fp16

SHORT_ONE, SHORT_PER_OCTAVE = 160, 6
"""The byte of the short step 1.0, and bytes per factor of two."""


@dataclass(frozen=True)
class StepFormat:
    """One of the four ways above."""

    by_pair: bool = False
    is_short: bool = False

    def encode(self, step: Tensor) -> Tensor:
        """Least steps float32 [..., D] -> bytes [..., S * D]. `decode` of these is nowhere below."""
        head_dim = step.shape[-1]
        if self.by_pair:
            step = torch.maximum(*step.chunk(2, dim=-1))
        if not self.is_short:
            return round_up_fp16(step).contiguous().view(torch.uint8)
        short = torch.searchsorted(short_steps(step.device), step.contiguous()).to(torch.uint8)
        return torch.nn.functional.pad(short, (0, head_dim - short.shape[-1]))

    def decode(self, step_bytes: Tensor) -> Tensor:
        """Bytes [..., S * D] -> steps [..., D], fp16 or, when short, float32."""
        if self.is_short:
            used = step_bytes[..., : step_bytes.shape[-1] // 2] if self.by_pair else step_bytes
            step = short_steps(step_bytes.device)[used.int()]
        else:
            step = step_bytes.view(torch.float16)
        return torch.cat([step, step], dim=-1) if self.by_pair else step


@lru_cache(maxsize=8)
def short_steps(device: torch.device) -> Tensor:
    """The 256 steps of 8 bits, ascending, float32: 0, then 1.1e-8 to 5.8e4, each 12 % above the one before.

    They reach as far down as fp16 does: a step that is rounded up to a larger smallest one would be many times as
    large as the values of a channel that is nearly constant.
    """
    steps = torch.exp2((torch.arange(256, dtype=torch.float64) - SHORT_ONE) / SHORT_PER_OCTAVE)
    steps[0] = 0.0
    return steps.float().to(device)
