"""Arguments of a launch besides the model's tensors: page tables, how the work is cut, what is corrected."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BIAS_SOURCES = {"off": 0, "step_sizes": 1, "variance": 2}
"""`PageBias.source` as the number that the kernel takes."""


@dataclass(frozen=True)
class Tiling:
    """How a launch is cut into blocks.

    The defaults are the largest blocks that correct by step sizes without spilling registers on compute capability 8.0
    and 9.0; with 64 tokens at once, 80 and 24 bytes are spilled.
    """

    block_rows: int = 128
    max_block_tokens: int = 32
    num_warps: int = 8
    num_stages: int = 2

    @staticmethod
    def of(dtype: torch.dtype) -> Tiling:
        """For queries of this dtype: float32 operands are twice as large, and tensor cores do not multiply them."""
        return Tiling() if dtype.itemsize == 2 else Tiling(block_rows=32, max_block_tokens=32, num_stages=1)


@dataclass(frozen=True)
class PagedWork:
    """Which pages the queries of a step see; made once per step and, except for `segments`, the same for all layers.

    A segment is one chunk that a range reads. All tensors are int32, contiguous and on the device.
    """

    pages: Tensor
    """Page lists of all chunks, one after the other."""
    segments: Tensor
    """[S, 6]: where head 0's key pages begin in `pages`, key pages per head, the same two for values, tokens of the
    chunk, row of its first frame in the rotary tables (rotary/axis_tables.py)."""
    ranges: Tensor
    """[E, 4]: first packed token, number of tokens, first segment, end of its segments."""
    blocks: Tensor
    """[B, 2]: range and first row of every block of `Tiling.block_rows` rows; a row is a token in one query head of the
    group."""
    group: int
    """Query heads per KV head."""
    tiling: Tiling

    @staticmethod
    def cut(pages: Tensor, segments: Tensor, ranges: Tensor, group: int, tiling: Tiling | None = None) -> PagedWork:
        """Cuts the `ranges`, which are on the CPU, into blocks; moves everything to the device of `pages`."""
        tiling = tiling or Tiling()
        blocks = [
            (number, row)
            for number, (_, num_tokens, *_) in enumerate(ranges.tolist())
            for row in range(0, num_tokens * group, tiling.block_rows)
        ]
        device = pages.device
        return PagedWork(
            pages,
            segments.to(device, torch.int32),
            ranges.to(device, torch.int32),
            torch.tensor(blocks, dtype=torch.int32).to(device),
            group,
            tiling,
        )


@dataclass(frozen=True)
class PageBias:
    """What the fused kernel subtracts from the scores of quantized keys (correction/formula.py)."""

    source: str
    """"step_sizes": b from the pages' step sizes; "variance": from `variance`."""
    rotates: bool
    """Whether keys are rotated after storage."""
    alpha: Tensor | None = None
    """Factor of every segment and KV head, float32 [S, H], contiguous; None: 1."""
    variance: Tensor | None = None
    """Var k' - Var k, [S, H, D], contiguous."""
