"""The pages of one pool: a fixed number of bytes each, whatever codec fills them.

A page is `rows` rows of D bytes (D = head_dim) and holds tokens of the keys, or of the values, of one KV head of one
layer. Pages of every codec have the same size, so chunks of different precision share one pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

DEFAULT_PAGE_ROWS = 36
MAX_BLOCK_FRAMES = 8
"""Most frames that klt transforms together: frames further apart have little in common."""


@dataclass(frozen=True)
class PageFormat:
    """The pages of one pool."""

    head_dim: int
    rows: int = DEFAULT_PAGE_ROWS
    tokens_per_frame: int = 1
    """Of the model. klt transforms the tokens at the same place of consecutive frames together."""
    frames_per_block: int = 1
    """Frames that klt transforms together."""

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of one page."""
        return self.rows * self.head_dim


def block_frames(frames_per_chunk: int) -> int:
    """Frames that klt transforms together: the largest divisor of a chunk's frames up to MAX_BLOCK_FRAMES."""
    return max(frames for frames in range(1, MAX_BLOCK_FRAMES + 1) if frames_per_chunk % frames == 0)
