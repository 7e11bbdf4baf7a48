"""Kernels look up the angles of a rope in its axis tables: for every token they find the rope's own numbers."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from pagedvid.models.demo.network import demo_rotary
from pagedvid.rotary.axis_tables import AxisTables
from pagedvid.rotary.kernels import load_angles


@triton.jit
def lookup_kernel(
    cos, sin, axes, cos_out, sin_out, frame_row, num_tokens,
    BLOCK: tl.constexpr, HALF: tl.constexpr, FRAME_TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.arange(0, BLOCK)
    mask = token < num_tokens
    cos_tile, sin_tile = load_angles(cos, sin, axes, token, frame_row, mask, HALF, FRAME_TOKENS, WIDTH)
    places = token[:, None] * HALF + tl.arange(0, HALF)[None, :]
    tl.store(cos_out + places, cos_tile, mask=mask[:, None])
    tl.store(sin_out + places, sin_tile, mask=mask[:, None])


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("places", [[(30, 45), (1500, 37), (0, 1)], [(0, 45), (7, 17)]], ids=["frames", "tokens"])
def test_kernels_find_the_numbers_of_the_rope(places: list[tuple[int, int]], head_dim: int) -> None:
    """Frames of 3 x 5 tokens, and a row per token where a chunk begins inside a frame."""
    rope = demo_rotary(head_dim, 3, 5)
    made = AxisTables.of(rope, places)
    assert made.frame_tokens == (1 if places[1][0] == 7 else 15)
    for (first_token, num_tokens), frame_row in zip(places, made.frame_rows, strict=True):
        expected = rope.tables(first_token, num_tokens)
        found = tuple(torch.empty_like(table) for table in expected)
        lookup_kernel[(1,)](
            made.cos, made.sin, made.axes, *found, frame_row, num_tokens, 64, head_dim // 2, made.frame_tokens,
            made.width,
        )  # fmt: skip
        for ours, looked_up, theirs in zip(found, made.of_chunk(frame_row, num_tokens), expected, strict=True):
            assert torch.equal(ours, theirs) and torch.equal(looked_up, theirs)
