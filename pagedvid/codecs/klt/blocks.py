"""Blocks: tokens at the same place of consecutive frames, which resemble each other and are transformed together.

With S tokens per frame and F frames per block, block u = g * S + s of a chunk holds the tokens (g * F + f) * S + s for
f = 0 .. F - 1. If a chunk ends inside a block, the block's missing tokens repeat its last ones. A page holds b
consecutive blocks, frame by frame, [F, b]; the last page is filled up with its last block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockLayout:
    """Which tokens form a block."""

    tokens_per_frame: int
    num_frames: int

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks of a chunk, including those that must be filled up."""
        return self.tokens_per_frame * -(-num_tokens // (self.tokens_per_frame * self.num_frames))

    def tokens(self, num_tokens: int) -> Tensor:
        """The token at each place of each block, int64 [blocks, F].

        Beyond the end of the chunk it is the token at the same place of the last frame that has one, or else the
        chunk's last token.
        """
        size = self.tokens_per_frame
        block = torch.arange(self.num_blocks(num_tokens))
        frame = torch.arange(self.num_frames)
        token = ((block // size)[:, None] * self.num_frames + frame) * size + (block % size)[:, None]
        frames_beyond = ((token - num_tokens).div(size, rounding_mode="floor") + 1).clamp(min=0)
        token = token - frames_beyond * size
        return torch.where(token < 0, num_tokens - 1, token)


@lru_cache(maxsize=64)
def tokens_in_pages(layout: BlockLayout, num_tokens: int, page_blocks: int, device: torch.device) -> Tensor | None:
    """The token at each place of each page, int64 [P * F * b], in page order; None if the order is the identity."""
    tokens_UF = layout.tokens(num_tokens)
    num_pages = -(-len(tokens_UF) // page_blocks)
    block = torch.arange(num_pages * page_blocks).clamp(max=len(tokens_UF) - 1)
    return _unless_identity(tokens_UF[block].unflatten(0, (num_pages, page_blocks)).mT.flatten(), num_tokens, device)


@lru_cache(maxsize=64)
def places_in_pages(layout: BlockLayout, num_tokens: int, page_blocks: int, device: torch.device) -> Tensor | None:
    """The place of each token in page order, int64 [num_tokens]; None if the order is the identity."""
    token = torch.arange(num_tokens)
    frame, place = token // layout.tokens_per_frame, token % layout.tokens_per_frame
    block = frame // layout.num_frames * layout.tokens_per_frame + place
    page_frame = block // page_blocks * layout.num_frames + frame % layout.num_frames
    return _unless_identity(page_frame * page_blocks + block % page_blocks, num_tokens, device)


def _unless_identity(index: Tensor, num_tokens: int, device: torch.device) -> Tensor | None:
    return None if torch.equal(index, torch.arange(num_tokens)) else index.to(device)


def cosine_transform(size: int) -> Tensor:
    """Orthonormal DCT-II, float32 [size, size]; row 0 takes the mean times sqrt(size)."""
    index = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi * index[:, None] * (index + 0.5) / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.float()
