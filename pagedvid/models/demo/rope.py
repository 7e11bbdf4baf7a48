"""Three-dimensional rotary positions (frame, row, column) of the demo model's tokens."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pagedvid.rotary.grid import RopeGrid


class DemoRope:
    """Rotary tables by token offset, half-split layout: channel c is rotated together with channel c + head_dim / 2.

    Half of the pairs turn with the frame number, a quarter with the row and a quarter with the column of the token.
    """

    layout = "half"

    def __init__(self, head_dim: int, grid_height: int, grid_width: int) -> None:
        if head_dim % 8:
            raise ValueError(f"head_dim is {head_dim}; it must be a multiple of 8 to split its pairs 2:1:1")
        num_pairs = head_dim // 2
        # Fastest pair: one radian per step. Slowest: about one turn over several windows (time) or frames (space).
        self._time_frequencies = 64.0 ** (-torch.arange(num_pairs // 2) / (num_pairs // 2))
        self._space_frequencies = 8.0 ** (-torch.arange(num_pairs // 4) / (num_pairs // 4))
        self.grid = RopeGrid.split(grid_height, grid_width, (num_pairs // 2, num_pairs // 4, num_pairs // 4))
        self.tables = lru_cache(maxsize=256)(self._tables)

    def _tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [num_tokens, head_dim / 2]; cached tensors: do not modify them."""
        height, width = self.grid.height, self.grid.width
        tokens = torch.arange(first_token, first_token + num_tokens)
        frame, row, column = tokens // (height * width), tokens // width % height, tokens % width
        angles = torch.cat(
            [
                frame[:, None] * self._time_frequencies,
                row[:, None] * self._space_frequencies,
                column[:, None] * self._space_frequencies,
            ],
            dim=1,
        )
        return angles.cos(), angles.sin()


def rotate_half(x_THD: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """Rotate queries or keys, half-split layout; tables [..., T, D/2] broadcast over the heads of x [..., T, H, D]."""
    first, second = x_THD.chunk(2, dim=-1)
    cos, sin = cos_TP.unsqueeze(-2), sin_TP.unsqueeze(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
