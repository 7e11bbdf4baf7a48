"""Codes of 1, 2, 4 or 8 bits in bytes, for records whose codes are one long row.

With n codes of w bits in R = n * w / 8 bytes, byte r holds codes r, r + R, r + 2R, ..., the first in the lowest bits:
one field of all bytes is a contiguous run of codes, as in quant/pages.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTHS = (8, 4, 2, 1)
"""Bits of a code that share bytes without crossing them."""


def pack_fields(codes: Tensor, width: int) -> Tensor:
    """uint8 codes [..., n], each below 2**width, n a multiple of 8 / width -> bytes [..., n * width / 8]."""
    fields = codes.unflatten(-1, (8 // width, -1))
    packed = fields[..., 0, :].clone()
    for i in range(1, 8 // width):
        packed |= fields[..., i, :] << (width * i)
    return packed


def unpack_fields(packed: Tensor, width: int) -> Tensor:
    """Bytes [..., R] -> uint8 codes [..., R * 8 / width]."""
    mask = (1 << width) - 1
    return torch.cat([(packed >> (width * i)) & mask for i in range(8 // width)], dim=-1)
