"""Small observed layers and the codecs calibrated on them."""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.geometry import PAGE_ROWS
from pagedvid.quant.blocks import BlockLayout
from pagedvid.quant.calibration import Observation, calibrate
from pagedvid.quant.klt import KltCodec

HEAD_DIM = 16
FRAME_TOKENS = 10


def draw(seed: int, num_chunks: int = 3, num_frames: int = 4, num_heads: int = 2) -> Observation:
    """Slowly changing keys and values of falling variance over the channels, offset, all heads different."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = num_frames * FRAME_TOKENS

    def tokens(count: int) -> Tensor:
        places = torch.randn(count, num_heads, 1, FRAME_TOKENS, HEAD_DIM, generator=generator)
        changes = torch.randn(count, num_heads, num_frames, FRAME_TOKENS, HEAD_DIM, generator=generator)
        decay = torch.exp(-torch.arange(HEAD_DIM) / (3.0 + torch.arange(num_heads)[:, None, None, None]))
        return ((places + 0.3 * changes) * decay + 0.5).flatten(2, 3)

    angles = torch.arange((num_chunks + 1) * num_tokens)[:, None] * 20.0 ** -torch.linspace(0, 1, HEAD_DIM // 2)
    angles = angles.unflatten(0, (num_chunks + 1, num_tokens))
    return Observation(
        tokens(num_chunks), tokens(num_chunks), tokens(2), tokens(2), tokens(2), angles.cos(), angles.sin()
    )


def codec(kind: str = "keys", page_blocks: int = 8, num_frames: int = 4, page_rows: int = PAGE_ROWS) -> KltCodec:
    """Calibrated on four videos of one layer."""
    layout = BlockLayout(FRAME_TOKENS, num_frames)
    return KltCodec(calibrate([[draw(seed) for seed in range(4)]], kind, layout, page_blocks, page_rows)[0])


def decode(codec: KltCodec, records: Tensor, num_tokens: int) -> Tensor:
    """Into a buffer full of NaN, so that whatever is not written shows."""
    padded = records.shape[1] * codec.tables.page_tokens
    return codec.decode(records, num_tokens, torch.full((len(records), padded, codec.tables.head_dim), torch.nan))
