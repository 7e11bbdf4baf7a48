"""The bytes of a page record: where codes, steps and zeros lie, and how codes share a byte.

A record is 36 rows of D bytes (see geometry.py). In the 32 code rows, byte (r, c) belongs to channel c and holds the
codes of tokens r, r + 32, r + 64, ... of the page, the first in the lowest bits:

            int2  bits 7..6   5..4   3..2   1..0            int4  bits 7..4   3..0
    byte (r, c) = t r+96    t r+64  t r+32  t r         byte (r, c) = t r+32   t r

So unpacking one bit field of all bytes gives 32 whole tokens in order: no shuffle, no table, and not even a shift,
since `byte & mask` is the code times a power of two, which folds into the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.geometry import CODE_ROWS, PAGE_ROWS


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., page_tokens, D], each below 2**bits -> bytes [..., 32, D]."""
    per_byte = 8 // bits
    fields = codes.unflatten(-2, (per_byte, CODE_ROWS))
    packed = fields.select(-3, 0).clone()
    for i in range(1, per_byte):
        packed |= fields.select(-3, i) << (bits * i)
    return packed


def unpack_scaled(packed: Tensor, bits: int) -> Tensor:
    """bytes [..., 32, D] -> uint8 [..., 8 / bits, 32, D]; field i holds code * 2**(bits * i), see `field_scale`."""
    per_byte = 8 // bits
    masks = torch.tensor(
        [((1 << bits) - 1) << (bits * i) for i in range(per_byte)], dtype=torch.uint8, device=packed.device
    )
    return packed.unsqueeze(-3) & masks.view(per_byte, 1, 1)


def field_scale(bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[8 / bits, 1, 1] powers of two by which steps are multiplied so that they fit `unpack_scaled`."""
    per_byte = 8 // bits
    return torch.tensor([2.0 ** -(bits * i) for i in range(per_byte)], dtype=dtype, device=device).view(per_byte, 1, 1)


def join_record(packed: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """Code bytes [..., 32, D] and fp16 steps and zeros [..., D] -> records uint8 [..., 36 * D]."""
    return torch.cat(
        [packed.flatten(-2), step.contiguous().view(torch.uint8), zero.contiguous().view(torch.uint8)], dim=-1
    )


def split_record(records: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Records uint8 [..., 36 * D] -> views: code bytes [..., 32, D], fp16 steps [..., D], fp16 zeros [..., D]."""
    head_dim = records.shape[-1] // PAGE_ROWS
    packed = records[..., : CODE_ROWS * head_dim].unflatten(-1, (CODE_ROWS, head_dim))
    metadata = records[..., CODE_ROWS * head_dim :].view(torch.float16)
    return packed, metadata[..., :head_dim], metadata[..., head_dim:]
