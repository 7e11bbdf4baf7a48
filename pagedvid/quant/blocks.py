"""Blocks: tokens at the same place of consecutive frames, which resemble each other and are transformed together.

With S tokens per frame and F frames per block, block u = g * S + s of a chunk holds the tokens (g * F + f) * S + s for
f = 0 .. F - 1. A chunk that does not fill its last frames repeats what it has there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockLayout:
    """Which tokens form a block."""

    tokens_per_frame: int
    num_frames: int

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks of a chunk, the last ones perhaps filled up."""
        return self.tokens_per_frame * -(-num_tokens // (self.tokens_per_frame * self.num_frames))

    def tokens(self, num_tokens: int) -> Tensor:
        """Token of every place in every block, int64 [blocks, F].

        A place beyond the chunk repeats the same place of the last frame that has it, or the chunk's last token.
        """
        size = self.tokens_per_frame
        block = torch.arange(self.num_blocks(num_tokens))
        frame = torch.arange(self.num_frames)
        token = ((block // size)[:, None] * self.num_frames + frame) * size + (block % size)[:, None]
        frames_beyond = ((token - num_tokens).div(size, rounding_mode="floor") + 1).clamp(min=0)
        token = token - frames_beyond * size
        return torch.where(token < 0, num_tokens - 1, token)

    def places(self, num_tokens: int) -> Tensor:
        """Where each token lies in the flattened [blocks, F], int64 [num_tokens]."""
        token = torch.arange(num_tokens)
        frame, place = token // self.tokens_per_frame, token % self.tokens_per_frame
        block = frame // self.num_frames * self.tokens_per_frame + place
        return block * self.num_frames + frame % self.num_frames


def cosine_transform(size: int) -> Tensor:
    """Orthonormal DCT-II [size, size]; row 0 is the mean times sqrt(size)."""
    steps = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi * steps[:, None] * (steps + 0.5) / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.float()
