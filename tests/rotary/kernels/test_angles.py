"""Angles looked up in tables of a grid, against the reference, and against tables with a row for every token."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.rotary.axis_tables import AngleTables
from pagedvid.rotary.kernels import angle_constants, angle_tensors, load_angles
from pagedvid.rotary.kernels import rotate as rotate_tiles
from pagedvid.rotary.tables import rotate

BLOCK = 32


@triton.jit(do_not_specialize=["frame_row", "first", "end"])
def rotate_kernel(
    x, cos, sin, axes, out, frame_row, first, end,
    BLOCK: tl.constexpr, HALF: tl.constexpr, ROTATE: tl.constexpr, FRAME_TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Rotates the tokens before `end` and copies the others."""
    token = first + tl.arange(0, BLOCK)
    places = tl.arange(0, BLOCK)[:, None] * (2 * HALF) + tl.arange(0, HALF)[None, :]
    cos_tile, sin_tile = load_angles(cos, sin, axes, token, frame_row, token < end, HALF, FRAME_TOKENS, WIDTH)
    first_half, second_half = rotate_tiles(tl.load(x + places), tl.load(x + places + HALF), cos_tile, sin_tile)
    tl.store(out + places, first_half)
    tl.store(out + places + HALF, second_half)


def rotated(x_nD: Tensor, angles: AngleTables, frame_row: int, first: int, end: int) -> Tensor:
    out = torch.full_like(x_nD, torch.nan)
    rotate_kernel[(1,)](
        x_nD, *angle_tensors(angles, x_nD), out, frame_row, first, end,
        BLOCK=BLOCK, HALF=x_nD.shape[1] // 2, **angle_constants(angles),
    )  # fmt: skip
    return out


@pytest.mark.parametrize(("head_dim", "frame_tokens", "width"), [(32, 15, 5), (64, 12, 4), (128, 7, 7), (32, 6, 1)])
def test_tokens_rotate_by_time_row_and_column(head_dim: int, frame_tokens: int, width: int) -> None:
    """The second chunk of two, from its token 9 on; tables with a row for every token say the same."""
    pairs = head_dim // 2
    axes = (torch.arange(pairs) * 5 + 1) % 7 % 3
    angles = torch.randn(frame_tokens // width + width + 2 * 9, pairs)
    grid = AngleTables(angles.cos(), angles.sin(), axes.int(), frame_tokens, width)
    frame_row = grid.first_frame_row + 9
    by_token = AngleTables.by_token(*grid.of_chunk(frame_row, 50))
    x = torch.randn(BLOCK, head_dim)

    expected = rotate(x, *(table[9 : 9 + BLOCK] for table in grid.of_chunk(frame_row, 50)))
    torch.testing.assert_close(rotated(x, grid, frame_row, 9, 50), expected, rtol=0, atol=1e-6)
    found = rotated(x, by_token, by_token.first_frame_row, 9, 50)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_places_without_a_token_do_not_rotate() -> None:
    """Nor are tables read there: the last frame is the last row."""
    axes = torch.arange(16).int() % 3
    angles = torch.randn(3 + 4 + 2, 16)
    grid = AngleTables(angles.cos(), angles.sin(), axes, 12, 4)
    x = torch.randn(BLOCK, 32)
    out = rotated(x, grid, grid.first_frame_row, 0, 17)
    angles_17 = grid.of_chunk(grid.first_frame_row, 17)
    torch.testing.assert_close(out[:17], rotate(x[:17], *angles_17), rtol=0, atol=1e-6)
    assert torch.equal(out[17:], x[17:])


def test_tables_of_tokens_in_bfloat16() -> None:
    """The two rows before those of the tokens are never read."""
    theta = torch.randn(40, 16)
    angles = AngleTables.by_token(theta.cos().bfloat16(), theta.sin().bfloat16())
    cos, sin = angles.of_chunk(angles.first_frame_row, 40)
    assert torch.equal(cos, theta.cos().bfloat16()) and torch.equal(sin, theta.sin().bfloat16())
    x = torch.randn(BLOCK, 32)
    found = rotated(x, angles, angles.first_frame_row + 8, 0, BLOCK)
    torch.testing.assert_close(found, rotate(x, cos[8:].float(), sin[8:].float()), rtol=0, atol=1e-6)
