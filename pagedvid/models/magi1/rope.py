"""The learnable rotary embedding of MAGI-1: one vector of frequencies for time, row and column alike.

In a head of d channels, 3d/8 pairs turn: (c, c + 3d/8) for c < 3d/8; the last d/4 channels stay. Inside pagedvid pairs
are (c, c + d/2), so the channels of queries and keys are put in another order when weights are loaded; scores do not
notice. The pairs that do not turn have cos 1 and sin 0.

    published   | first 3d/8 | second 3d/8 | still d/4 |
    here        | first 3d/8 | still d/8   | second 3d/8 | still d/8 |
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import torch
from torch import Tensor

from pagedvid.rotary.grid import RopeGrid

REFERENCE_TOKENS = 256
"""Row and column positions are scaled as if a frame had 16 x 16 tokens."""


def channel_order(head_dim: int) -> Tensor:
    """Published channel of every channel here, int64 [head_dim]."""
    turning, still = 3 * head_dim // 8, head_dim // 8
    first, second = torch.arange(turning), torch.arange(turning, 2 * turning)
    rest = torch.arange(2 * turning, head_dim)
    return torch.cat([first, rest[:still], second, rest[still:]])


class MagiRope:
    """Rotary tables by token offset in the whole video, half layout."""

    layout = "half"

    def __init__(self, bands: Tensor, rows: int, columns: int) -> None:
        """`bands`: float32 [head_dim / 8], as trained."""
        self._bands = bands.detach().float()
        self.grid = RopeGrid.split(rows, columns, (len(bands), len(bands), 2 * len(bands)))  # the last are still
        scale = sqrt(rows * columns / REFERENCE_TOKENS)
        self._row_positions = _centred(rows, scale).to(bands.device)
        self._column_positions = _centred(columns, scale).to(bands.device)
        self.tables = lru_cache(maxsize=32)(self._tables)

    def _tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [num_tokens, head_dim / 2]; cached tensors: do not modify them."""
        rows, columns = self.grid.height, self.grid.width
        tokens = torch.arange(first_token, first_token + num_tokens, device=self._bands.device)
        positions = (
            (tokens // (rows * columns)).float(),
            self._row_positions[tokens // columns % rows],
            self._column_positions[tokens % columns],
        )
        angles = torch.cat([position[:, None] * self._bands for position in positions], dim=1)
        still = angles.new_zeros(num_tokens, len(self._bands))
        angles = torch.cat([angles, still], dim=1)
        return angles.cos(), angles.sin()


def _centred(size: int, scale: float) -> Tensor:
    """Positions of `size` rows or columns around 0, float32 [size]; size is at least 2."""
    return (torch.arange(size) - (size - 1) / 2) * ((size / scale - 1) / (size - 1))
