"""Rotary positions on three axes: time slot, row, column.

The time position of a frame is its slot in memory and chunk (0, 1, 2, ...), not its number in the video. Token offset
n is slot n // (h w), row and column of n % (h w); so "window" positions of the cache are these slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedvid.errors import ShapeError
from pagedvid.rotary.grid import RopeGrid


@dataclass(frozen=True)
class SlotRope:
    """`RopeTables` of a grid of `rows` x `columns` tokens per frame."""

    axis_channels: tuple[int, int, int]
    """Channels that turn with time, row, column; their sum is head_dim."""
    rows: int
    columns: int
    theta: float
    layout: str = "interleaved"
    """Of this model. The tables have a column for each pair, whichever channels form it."""
    _cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.rows * self.columns

    @property
    def grid(self) -> RopeGrid:
        """See `GridRope`."""
        return RopeGrid.split(self.rows, self.columns, [channels // 2 for channels in self.axis_channels])

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), float32 [num_tokens, head_dim / 2]. Raises ShapeError when a frame is cut."""
        if first_token % self.tokens_per_frame or num_tokens % self.tokens_per_frame:
            raise ShapeError(
                f"tokens {first_token} to {first_token + num_tokens} cut a frame of {self.tokens_per_frame} tokens"
            )
        key = (first_token // self.tokens_per_frame, num_tokens // self.tokens_per_frame)
        if key not in self._cache:
            angles = self._angles(*key)
            self._cache[key] = (angles.cos().float(), angles.sin().float())
        return self._cache[key]

    def _angles(self, first_slot: int, num_frames: int) -> Tensor:
        """float64 [tokens, head_dim / 2]."""
        axes = (torch.arange(first_slot, first_slot + num_frames), torch.arange(self.rows), torch.arange(self.columns))
        positions = torch.cartesian_prod(*axes).view(-1, 3).double()
        return torch.cat([positions[:, i : i + 1] * self._frequencies(i) for i in range(3)], dim=1)

    def _frequencies(self, axis: int) -> Tensor:
        channels = self.axis_channels[axis]
        exponents = torch.arange(0, channels, 2, dtype=torch.float64) / max(channels, 1)
        return self.theta**-exponents
