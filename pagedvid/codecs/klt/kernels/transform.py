"""Tokens of a chunk -> coefficients in units of their expected deviations, in the order of their codes.

The cosine transform over the frames of a block comes first. Both transforms are linear, and in this order a program
computes one frequency with one matrix product and holds one tile, however many frames a block has. Tokens are read once
per frequency, all but the first time from the processor's cache. Means are subtracted before anything else, since keys
may have channels whose mean is far larger than their deviation.

Reference: `KltCodec._coefficients`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.triton_common import LIMIT

TILE_BLOCKS = 32
TILE_CHANNELS = 32
"""Channels that a product takes at a time: with more, the operands, split for TF32, do not fit into registers."""
NUM_WARPS = 8


@triton.jit
def token_of(block, frame, num_tokens, FRAME_TOKENS: tl.constexpr, NUM_FRAMES: tl.constexpr):
    """The token of a frame of each block, as `BlockLayout.tokens`; blocks beyond the last repeat it."""
    group_tokens: tl.constexpr = FRAME_TOKENS * NUM_FRAMES
    num_blocks = (num_tokens + group_tokens - 1) // group_tokens * FRAME_TOKENS
    block = tl.minimum(block, num_blocks - 1)
    token = (block // FRAME_TOKENS * NUM_FRAMES + frame) * FRAME_TOKENS + block % FRAME_TOKENS
    frames_beyond = tl.where(token < num_tokens, 0, (token - num_tokens) // FRAME_TOKENS + 1)
    token -= frames_beyond * FRAME_TOKENS
    return tl.where(token < 0, num_tokens - 1, token)


@triton.jit(do_not_specialize=["num_tokens", "num_blocks"])
def klt_transform_kernel(
    x, mean, analysis, cosines, deviation, rank, normal, bad, num_tokens, num_blocks, x_token_stride, x_head_stride,
    TILE_BLOCKS: tl.constexpr, TILE_CHANNELS: tl.constexpr, HEAD_DIM: tl.constexpr, NUM_FRAMES: tl.constexpr,
    FRAME_TOKENS: tl.constexpr, NUM_CODED: tl.constexpr,
):  # fmt: skip
    """Each program computes one frequency of some blocks: grid (tiles of blocks, frequencies, heads).

    `normal` is [heads, NUM_CODED, num_blocks].
    """
    frequency = tl.program_id(1)
    head = tl.program_id(2)
    direction = tl.arange(0, HEAD_DIM)
    block = tl.program_id(0) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
    x += head.to(tl.int64) * x_head_stride
    analysis += head * HEAD_DIM * HEAD_DIM
    y = tl.zeros([TILE_BLOCKS, HEAD_DIM], tl.float32)
    is_bad = tl.zeros([TILE_BLOCKS, TILE_CHANNELS], tl.int32)
    for first_channel in range(0, HEAD_DIM, TILE_CHANNELS):
        channel = first_channel + tl.arange(0, TILE_CHANNELS)
        mean_tile = tl.load(mean + head * HEAD_DIM + channel)[None, :]
        z = tl.zeros([TILE_BLOCKS, TILE_CHANNELS], tl.float32)
        for frame in tl.static_range(NUM_FRAMES):
            token = token_of(block, frame, num_tokens, FRAME_TOKENS, NUM_FRAMES).to(tl.int64)
            tile = tl.load(x + token[:, None] * x_token_stride + channel[None, :]).to(tl.float32)
            is_bad |= tl.where(tl.abs(tile) < LIMIT, 0, 1)  # NaN is bad too
            z += tl.load(cosines + frequency * NUM_FRAMES + frame) * (tile - mean_tile)
        matrix = tl.load(analysis + channel[:, None] * HEAD_DIM + direction[None, :])
        # TF32x3 is as good as float32. Plain TF32 is off by up to 0.02 deviations where a direction is a small
        # difference of strong channels, and 8-bit levels are 0.04 apart.
        y = tl.dot(z, matrix, y, input_precision="tf32x3")
    flag = (head * NUM_FRAMES + frequency) * tl.num_programs(0) + tl.program_id(0)
    tl.store(bad + flag, tl.max(tl.max(is_bad, axis=1), axis=0).to(tl.uint8))
    coefficient = (head * NUM_FRAMES + frequency) * HEAD_DIM + direction
    y = y / tl.load(deviation + coefficient)[None, :]
    row = tl.load(rank + coefficient).to(tl.int32)[:, None]
    places = normal + head.to(tl.int64) * NUM_CODED * num_blocks + row * num_blocks + block[None, :]
    tl.store(places, tl.trans(y), mask=(row < NUM_CODED) & (block < num_blocks)[None, :])


def transform(x_nHD: Tensor, layout: KltLayout, num_pages: int) -> tuple[Tensor, Tensor]:
    """Coefficients float32 [H, K, U] by rank of the U blocks of the pages; and the flags of `encode_klt`."""
    coding = layout.coding
    num_tokens, num_heads, _ = x_nHD.shape
    num_blocks = num_pages * layout.page_blocks
    tiles = triton.cdiv(num_blocks, TILE_BLOCKS)
    normal_HKU = torch.empty(num_heads, coding.num_coded, num_blocks, dtype=torch.float32, device=x_nHD.device)
    bad = torch.empty(num_heads, layout.num_frames * tiles, dtype=torch.uint8, device=x_nHD.device)
    klt_transform_kernel[(tiles, layout.num_frames, num_heads)](
        x_nHD, coding.mean_h1D, coding.analysis_hDD, coding.cosines_FF, coding.deviation_h1F1D,
        coding.rank_hN, normal_HKU, bad, num_tokens, num_blocks, *x_nHD.stride()[:2],
        **transform_constants(layout), num_warps=NUM_WARPS,
    )  # fmt: skip
    return normal_HKU, bad


def transform_constants(layout: KltLayout) -> dict[str, int]:
    """Compile-time arguments of the kernel."""
    return {
        "TILE_BLOCKS": TILE_BLOCKS,
        "TILE_CHANNELS": TILE_CHANNELS,
        "HEAD_DIM": layout.head_dim,
        "NUM_FRAMES": layout.num_frames,
        "FRAME_TOKENS": layout.tokens_per_frame,
        "NUM_CODED": layout.coding.num_coded,
    }
