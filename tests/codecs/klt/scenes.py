"""Small observed layers and the codecs calibrated on them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pagedvid.calibration.fit import calibrate
from pagedvid.calibration.statistics import Observation
from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.base import make_codec
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.codec import KltCodec
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat

HEAD_DIM = 16
FRAME_TOKENS = 10
NUM_FRAMES = 4
"""Of a block."""
SPAN_TOKENS = FRAME_TOKENS * NUM_FRAMES
"""Chunks of that many tokens fill their blocks."""


def draw(seed: int, num_chunks: int = 3, num_frames: int = NUM_FRAMES, num_heads: int = 2) -> Observation:
    """Slowly changing keys and values, with falling variance over the channels and an offset; all heads differ."""
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


def page(name: str, page_blocks: int = 8) -> PageFormat:
    """Pages of that many blocks, with as many bits per value as the name and whole rows allow."""
    rows = 5
    while read_codec(name).page_blocks(PageFormat(HEAD_DIM, rows + 1, FRAME_TOKENS, NUM_FRAMES)) <= page_blocks:
        rows += 1
    return PageFormat(HEAD_DIM, rows, FRAME_TOKENS, NUM_FRAMES)


@lru_cache(maxsize=16)
def tables(kind: str = "keys") -> KltTables:
    """Calibrated on four videos of one layer."""
    return calibrate([[draw(seed) for seed in range(4)]], kind, BlockLayout(FRAME_TOKENS, NUM_FRAMES))[0]


def codec(name: str = "klt2", kind: str = "keys", page_blocks: int = 8, heads: Heads | None = None) -> KltCodec:
    """For the layer of `tables`."""
    made = make_codec(read_codec(name), page(name, page_blocks), tables(kind))
    return made if heads is None else made.of_heads(heads)


def decode(codec: KltCodec, records: Tensor, num_tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Tokens decoded into a buffer full of NaN, so that anything not written shows."""
    padded = read_codec(codec.name).padded_tokens(codec.page, num_tokens)
    out = torch.full((len(records), padded, codec.page.head_dim), torch.nan, dtype=dtype)
    return codec.decode(records, num_tokens, out)
