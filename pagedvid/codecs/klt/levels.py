"""Fixed quantizers of 1, 2, 4 and 8 bits for numbers of about unit variance.

Up to 4 bits the levels are the Lloyd-Max levels of a Laplace distribution, since transform coefficients have a sharper
peak and longer tails than a Gaussian; at 8 bits they are uniform. All are symmetric. Levels fitted to each model were
tried: they gain nothing once scales are chosen page by page (benchmarks/codec_log.md).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

UNIFORM_REACH = 5.0
"""Largest of the 256 levels of 8 bits."""
UNIFORM_STEP_SIZE = 2 * UNIFORM_REACH / 255
POSITIVE_LEVELS = {
    1: (0.7071,),
    2: (0.4197, 1.8339),
    4: (0.1239, 0.4047, 0.7283, 1.1104, 1.5770, 2.1761, 3.0151, 4.4283),
    8: tuple(UNIFORM_STEP_SIZE * (i + 0.5) for i in range(128)),
}
"""The upper half of the levels of each width, ascending."""
_CELLS_PER_UNIT, _CELLS_REACH = 128, 4
"""Levels of 4 bits are looked up in a table of narrow cells, which ends at the reach. Within half a cell of the edge
between two levels, the lookup may find the farther one, which is farther by at most a cell."""
MISS_AT_ZERO, MISS_SLOPE = 0.067, 0.055
"""The intervals that round to one level of 4 bits widen about linearly, from 0.26 at 0 to 0.53 at 1.6; the root mean
square miss is 1/sqrt(12) of the width."""


@lru_cache(maxsize=64)
def levels(width: int, device: torch.device) -> Tensor:
    """float32 [2 ** width], ascending."""
    positive = _positive(width, device)
    return torch.cat([-positive.flip(0), positive])


@lru_cache(maxsize=64)
def byte_values(width: int, device: torch.device) -> Tensor:
    """The levels of the codes in each byte, float32 [256, 8 / width], the code in the lowest bits first."""
    byte = torch.arange(256, device=device)
    fields = [(byte >> shift) & ((1 << width) - 1) for shift in range(0, 8, width)]
    return levels(width, device)[torch.stack(fields, dim=-1)]


def nearest(x: Tensor, width: int) -> Tensor:
    """Indices of the nearest levels, 0 for the lowest, as float32 in the shape of `x`."""
    if width == 8:
        return x.div(UNIFORM_STEP_SIZE).add_(127.5).round_().clamp_(0, 255)
    if width == 1:
        return (x > 0).float()
    if width == 2:
        edge = sum(POSITIVE_LEVELS[2]) / 2
        return (x > 0).float().add_(x > edge).add_(x > -edge)
    cells = x.mul(_CELLS_PER_UNIT).add_(_CELLS_PER_UNIT * _CELLS_REACH).clamp_(0, 2 * _CELLS_PER_UNIT * _CELLS_REACH)
    return torch.nn.functional.embedding(cells.int(), _level_of_cell(x.device))[..., 0]


def likely_miss_(x: Tensor, width: int) -> Tensor:
    """The distance of numbers to their nearest levels, up to the sign; may overwrite `x`.

    At 4 bits only an estimate: the root mean square distance for numbers of that size, or the distance to the outermost
    level.
    """
    if width == 8:
        return x.div(UNIFORM_STEP_SIZE).sub_(0.5).round_().clamp_(-128, 127).add_(0.5).mul_(UNIFORM_STEP_SIZE).sub_(x)
    magnitude = x.abs_()
    if width == 1:
        return magnitude.sub_(POSITIVE_LEVELS[1][0])
    if width == 2:
        low, high = POSITIVE_LEVELS[2]
        return magnitude.sub_((low + high) / 2).abs_().sub_((high - low) / 2)
    beyond = magnitude - POSITIVE_LEVELS[4][-1]
    return magnitude.mul_(MISS_SLOPE).add_(MISS_AT_ZERO).maximum(beyond)


@lru_cache(maxsize=64)
def _positive(width: int, device: torch.device) -> Tensor:
    return torch.tensor(POSITIVE_LEVELS[width], dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _level_of_cell(device: torch.device) -> Tensor:
    """Index of the level of 4 bits that is nearest to the middle of each cell, float32 [cells, 1]."""
    num_cells = 2 * _CELLS_PER_UNIT * _CELLS_REACH + 1
    middle = (torch.arange(num_cells, dtype=torch.float32, device=device) + 0.5) / _CELLS_PER_UNIT - _CELLS_REACH
    ascending = levels(4, device)
    return torch.bucketize(middle, (ascending[1:] + ascending[:-1]) / 2).float()[:, None]
