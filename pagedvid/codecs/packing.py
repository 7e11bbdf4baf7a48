"""The bytes of a page of channel codes: where codes, steps and zeros lie, and how codes share a byte.

A record is the page's rows of D bytes (see codecs/page.py):

    | C rows of codes ........................................ | steps, 1 or 2 rows | zero fp16 [D], 2 rows |

with 32 rows of codes in a page of 36 rows, unless an option shortens the steps (channel/step_sizes.py) and makes room
for one more. Byte (r, c) of the codes belongs to channel c and holds the codes of tokens r, r + C, r + 2C, ... of the
page, the first in the lowest bits. With C = 32:

            int2  bits 7..6   5..4   3..2   1..0            int4  bits 7..4   3..0
    byte (r, c) = t r+96    t r+64  t r+32  t r         byte (r, c) = t r+32   t r

So unpacking one bit field of all bytes gives C whole tokens in order: no shuffle, no table, and not even a shift,
since `byte & mask` is the code times a power of two, which folds into the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

ZERO_ROWS = 2


def fill_pages(x_RnD: Tensor, page_tokens: int) -> Tensor:
    """A copy of tokens as [R, P, page_tokens, D]; the last page is filled with its last token, which moves neither its
    smallest nor its largest value."""
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


def unpack_scaled(packed: Tensor, bits: int) -> Tensor:
    """bytes [..., C, D] -> uint8 [..., 8 / bits, C, D]; field i holds code * 2**(bits * i), see `field_scale`."""
    per_byte = 8 // bits
    masks = torch.tensor(
        [((1 << bits) - 1) << (bits * i) for i in range(per_byte)], dtype=torch.uint8, device=packed.device
    )
    return packed.unsqueeze(-3) & masks.view(per_byte, 1, 1)


def field_scale(bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[8 / bits, 1, 1] powers of two by which steps are multiplied so that they fit `unpack_scaled`."""
    per_byte = 8 // bits
    return torch.tensor([2.0 ** -(bits * i) for i in range(per_byte)], dtype=dtype, device=device).view(per_byte, 1, 1)


def join_record(packed: Tensor, step_bytes: Tensor, zero: Tensor) -> Tensor:
    """Code bytes [..., C, D], the whole rows of step bytes [..., S * D] and fp16 zeros [..., D] -> records uint8."""
    return torch.cat([packed.flatten(-2), step_bytes, zero.contiguous().view(torch.uint8)], dim=-1)


def split_record(records: Tensor, code_rows: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Records uint8 [..., B] -> views: code bytes [..., C, D], step bytes [..., S * D], fp16 zeros [..., D]."""
    first_step, first_zero = code_rows * head_dim, records.shape[-1] - ZERO_ROWS * head_dim
    packed = records[..., :first_step].unflatten(-1, (code_rows, head_dim))
    return packed, records[..., first_step:first_zero], records[..., first_zero:].view(torch.float16)
