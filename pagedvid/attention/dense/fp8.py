"""Tensors in float8_e4m3fn (4 bits of exponent, 3 of mantissa) with one float32 scale for each (sequence, KV head).

Rounding is to the nearest number, ties to even. The largest number is 448, the smallest normal one 2**-6: as long as
nothing is larger than 448, a scale several times too large costs no precision.

Axes as in base.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 448.0
SMALLEST_SCALE = 1e-30
"""For tensors of zeros."""


def to_fp8(x_ETHD: Tensor, num_kv_heads: int) -> tuple[Tensor, Tensor]:
    """(x in float8_e4m3fn [E, T, Hq, D], scales float32 [E, H]): the largest magnitude of a KV head becomes 448.

    What is expanded along E (stride 0) stays so.
    """
    num_sequences = len(x_ETHD)
    if x_ETHD.stride(0) == 0:
        x_ETHD = x_ETHD[:1]
    x_ETHGD = x_ETHD.unflatten(2, (num_kv_heads, -1))
    scales_EH = (x_ETHGD.abs().amax(dim=(1, 3, 4)).float() / LARGEST).clamp(min=SMALLEST_SCALE)
    scaled = x_ETHGD / scales_EH[:, None, :, None, None]
    # Releases of PyTorch differ in what becomes of numbers that rounding has lifted above 448.
    rounded = scaled.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn).flatten(2, 3)
    return rounded.expand(num_sequences, -1, -1, -1), scales_EH.expand(num_sequences, -1)
