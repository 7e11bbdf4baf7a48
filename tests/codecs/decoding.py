"""Decoding by kernels and by the reference, `CodecOperations`, for chunks of any codec.

Axes as in pagedvid/codecs/base.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.codecs.base import Codec, CodecOperations, PageKernels
from pagedvid.rotary.angles import Angles
from tests.devices import DEVICE

# The interpreter truncates to bfloat16 instead of rounding.
TOLERANCES = {
    torch.float32: (1e-6, 1e-5),
    torch.bfloat16: (2.0**-7, 1e-5),
    torch.float16: (2.0**-10, 1e-5),
    torch.float8_e4m3fn: (2.0**-3, 2.0**-9),
}
"""(relative, absolute) by the dtype of decoded tokens."""


def random_angles(num_tokens: int, head_dim: int, tables: list[int], dtype: torch.dtype = torch.float32) -> Angles:
    """A table for each number in `tables`, which begin with 0 and name the table of each chunk."""
    generator = torch.Generator("cpu").manual_seed(len(tables))
    shape = (max(tables) + 1, num_tokens, head_dim // 2)
    angles = 3 * torch.randn(shape, generator=generator, device="cpu")
    table_S = torch.tensor(tables, dtype=torch.int32, device=DEVICE)
    return Angles(angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype), table_S)


def check_out_heads(
    kernels: PageKernels,
    records: Tensor,
    pages_SHP: Tensor,
    num_tokens: int,
    head_dim: int,
    angles: Angles | None = None,
    dtype: torch.dtype = torch.float32,
    inverse_scales_SH: Tensor | None = None,
) -> None:
    """Heads that are not neighbours are written as neighbours are, and no other head is touched."""
    num_chunks, num_heads, _ = pages_SHP.shape
    heads = torch.arange(num_heads, device=DEVICE) * 2 + 1
    plain, wide = (
        torch.full((1, num_chunks, num_tokens, size, head_dim), 7.0, device=DEVICE).to(dtype)
        for size in (num_heads, 2 * num_heads + 2)
    )
    kernels.decode(records, pages_SHP, num_tokens, plain, angles, inverse_scales_SH)
    kernels.decode(records, pages_SHP, num_tokens, wide, angles, inverse_scales_SH, heads)
    assert torch.equal(wide.float()[..., heads, :], plain.float())
    others = torch.arange(2 * num_heads + 2, device=DEVICE)
    assert bool((wide.float()[..., ~torch.isin(others, heads), :] == 7).all()), "another head was written"


def decoded(
    codec: Codec, records: Tensor, pages_SHP: Tensor, num_tokens: int, angles: Angles | None = None, num_ranges: int = 1
) -> Tensor:
    """Tokens float32 [E, J, n, H, D] by the reference."""
    num_chunks, num_heads, _ = pages_SHP.shape
    shape = (num_ranges, num_chunks // num_ranges, num_tokens, num_heads, codec.page.head_dim)
    out = torch.empty(shape, dtype=torch.float32, device=DEVICE)
    CodecOperations(codec, DEVICE).decode(records, pages_SHP, num_tokens, out, angles)
    return out


def check_decode(
    kernels: PageKernels,
    codec: Codec,
    records: Tensor,
    pages_SHP: Tensor,
    num_tokens: int,
    angles: Angles | None = None,
    num_ranges: int = 1,
    dtype: torch.dtype = torch.float32,
    inverse_scales_SH: Tensor | None = None,
    relative: float | None = None,
) -> Tensor:
    """Kernels write the tokens of the reference into strided memory, and nothing beside them; returns the tokens.

    Heads lie next to each other, chunks with gaps between them.
    """
    num_chunks, num_heads, _ = pages_SHP.shape
    shape = (num_ranges, num_chunks // num_ranges, num_tokens, num_heads, codec.page.head_dim)
    memory = torch.full((shape[0], shape[1] + 1, num_heads, num_tokens + 3, shape[4]), 7.0, device=DEVICE).to(dtype)
    out = memory[:, 1:, :, 1:-2].transpose(2, 3)
    kernels.decode(records, pages_SHP, num_tokens, out, angles, inverse_scales_SH)
    expected = decoded(codec, records, pages_SHP, num_tokens, angles, num_ranges)
    if inverse_scales_SH is not None:
        expected *= inverse_scales_SH.view(*shape[:2], 1, num_heads, 1)
    limit = torch.finfo(dtype).max
    rtol, atol = TOLERANCES[dtype]
    scale = 1.0 if relative is None else expected.abs().max().item() * relative
    torch.testing.assert_close(
        out.float(), expected.clamp(-limit, limit), rtol=rtol, atol=atol if relative is None else scale
    )
    found = out.clone()
    out.fill_(7)
    assert bool((memory == 7).all()), "something beside the tokens was written"
    return found
