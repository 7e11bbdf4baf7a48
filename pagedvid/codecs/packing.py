"""Codes and step sizes in bytes.

`pack`, for a page of codes of 2, 4 or 8 bits: their rows are cut into 8 / bits equal parts; byte (r, c) holds the codes
of rows r, r + C, r + 2C, ... of column c, the first in the lowest bits. With C = 32 rows of bytes:

            int2  bits 7..6   5..4   3..2   1..0            int4  bits 7..4   3..0
    byte (r, c) = t r+96    t r+64  t r+32  t r         byte (r, c) = t r+32   t r

So unpacking one bit field of all bytes gives C whole rows in order: no shuffle, no table, and not even a shift, since
`byte & mask` is the code times a power of two, which folds into the step size.

`pack_fields`, for records whose codes are one long row: neighbours share a byte, the first in the lowest bits. Byte r
of codes of w bits holds code r * 8 / w and those after it, so one table of the values of every byte decodes them all.

Step sizes are rounded to fp16, or to 8 bits: byte b stands for 2^((b - 160) / 6), and byte 0 for a step size of 0.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

FP16_MAX = 65504.0
"""Values must be below this in magnitude, since step sizes and zero points are fp16."""
FLOAT8_MAX = 448.0
"""The largest float8_e4m3fn number."""
SHORT_ONE, SHORT_PER_OCTAVE = 160, 6
"""The byte of the short step size 1.0, and bytes per factor of two."""
WIDTHS = (8, 4, 2, 1)
"""Bits of a code: the widths that divide a byte."""


def fill_pages(x_RnD: Tensor, page_tokens: int) -> Tensor:
    """A copy of the tokens [R, n, D] as [R, P, page_tokens, D].

    The last page is filled up with its last token, so that its smallest and largest values stay the same.
    """
    padding = -x_RnD.shape[1] % page_tokens
    filled = torch.cat([x_RnD, x_RnD[:, -1:].expand(-1, padding, -1)], dim=1)
    return filled.unflatten(1, (-1, page_tokens))


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., page_tokens, D], each below 2**bits -> bytes [..., C, D]."""
    per_byte = 8 // bits
    fields = codes.unflatten(-2, (per_byte, -1))
    packed = fields.select(-3, 0).clone()
    for i in range(1, per_byte):
        packed |= fields.select(-3, i) << (bits * i)
    return packed


@lru_cache(maxsize=64)
def field_scale(bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Powers of two [8 / bits, 1, 1]: step sizes times these are the step sizes of the fields under `field_masks`."""
    per_byte = 8 // bits
    return torch.tensor([2.0 ** -(bits * i) for i in range(per_byte)], dtype=dtype, device=device).view(per_byte, 1, 1)


@lru_cache(maxsize=64)
def field_masks(bits: int, device: torch.device) -> Tensor:
    """The bit mask of each field, uint8 [8 / bits, 1, 1]: field i of a byte, masked, is its code * 2**(bits * i)."""
    masks = [((1 << bits) - 1) << shift for shift in range(0, 8, bits)]
    return torch.tensor(masks, dtype=torch.uint8, device=device).view(-1, 1, 1)


def round_down_fp16(x: Tensor) -> Tensor:
    """The largest fp16 number that is not above `x`."""
    nearest = x.half()
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.float() > x, below, nearest)


def round_up_fp16(x: Tensor) -> Tensor:
    """The smallest fp16 number that is not below `x`."""
    nearest = x.half()
    above = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    return torch.where(nearest.float() < x, above, nearest)


def pack_fields(codes: Tensor, width: int) -> Tensor:
    """Codes [..., n] -> bytes uint8 [..., n * width / 8].

    Codes are whole numbers below 2**width in float32, and n is a multiple of 8 / width.
    """
    if width == 8:
        return codes.to(torch.uint8)
    places = 2.0 ** torch.arange(0, 8, width, dtype=torch.float32, device=codes.device)
    return (codes.unflatten(-1, (-1, 8 // width)) @ places).to(torch.uint8)


@lru_cache(maxsize=8)
def short_step_sizes(device: torch.device) -> Tensor:
    """The 256 step sizes, ascending, float32 [256]: 0, then 1.1e-8 to 5.8e4, each 12 % above the one before.

    They reach as far down as fp16 does. If they did not, the step size of a nearly constant channel would be rounded up
    to many times the size of its values.
    """
    step_sizes = torch.exp2((torch.arange(256, dtype=torch.float64) - SHORT_ONE) / SHORT_PER_OCTAVE)
    step_sizes[0] = 0.0
    return step_sizes.float().to(device)
