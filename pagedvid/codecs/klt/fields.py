"""Codes of 1, 2, 4 or 8 bits in bytes, for records whose codes are one long row.

Neighbouring codes share a byte, the first in the lowest bits: byte r of codes of w bits holds code r * 8 / w and those
after it. So one table of the values of every byte decodes all codes of the byte at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding

WIDTHS = (8, 4, 2, 1)
"""Bits of a code: the widths that divide a byte."""


def pack_fields(codes: Tensor, width: int) -> Tensor:
    """Codes [..., n] -> bytes uint8 [..., n * width / 8].

    Codes are whole numbers below 2**width in float32, and n is a multiple of 8 / width.
    """
    if width == 8:
        return codes.to(torch.uint8)
    places = 2.0 ** torch.arange(0, 8, width, dtype=torch.float32, device=codes.device)
    return (codes.unflatten(-1, (-1, 8 // width)) @ places).to(torch.uint8)


def unpack_fields(packed: Tensor, values: Tensor) -> Tensor:
    """Bytes int32 [..., r] -> the values of their codes [..., r * 8 / width], by a table `values` [256, 8 / width]."""
    return embedding(packed, values).flatten(-2)
