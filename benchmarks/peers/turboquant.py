"""TurboQuant (arXiv 2504.19874) without its QJL stage, as serving engines use it.

Every token is divided by its norm, then rotated by random sign flips and a Hadamard matrix. Each coordinate, now nearly
Gaussian, is rounded to the nearest Lloyd-Max level. Codes are stored, and the norm in fp16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.codecs.token.hadamard import hadamard_matrix
from peers import Stored

ROTATION_SEED = 0
NUM_QUANTILES = 20_000


def turboquant(x_HnD: Tensor, bits: int) -> Stored:
    """Levels are not uniform, so no step size is reported."""
    head_dim = x_HnD.shape[-1]
    signs = torch.randint(0, 2, (head_dim,), generator=torch.Generator().manual_seed(ROTATION_SEED)) * 2.0 - 1
    matrix = signs[:, None] * hadamard_matrix(head_dim)
    norm = x_HnD.norm(dim=-1, keepdim=True).half().float()
    unit = (x_HnD / norm.where(norm > 0, 1.0)) @ matrix * head_dim**0.5
    levels = lloyd_max(torch.special.ndtri((torch.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES), 1 << bits)
    nearest = levels[torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2)]
    return Stored(nearest @ matrix.T * norm / head_dim**0.5, bits + 16 / head_dim)


def lloyd_max(values: Tensor, num_levels: int, num_rounds: int = 100) -> Tensor:
    """Levels [num_levels], ascending, with a locally least mean square error over `values` [n] (Lloyd 1957)."""
    levels = torch.quantile(values, (torch.arange(num_levels) + 0.5) / num_levels)
    for _ in range(num_rounds):
        cell = torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)
        count = torch.bincount(cell, minlength=num_levels)
        total = torch.zeros(num_levels).index_add_(0, cell, values)
        levels = torch.where(count > 0, total / count.clamp(min=1), levels)
    return levels
