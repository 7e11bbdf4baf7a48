"""The Hadamard matrix over the head dimension (QuaRot, arXiv 2404.00456): outlier channels are spread evenly, so that
one step size serves a whole group.

With the orthonormal symmetric H, q . k = (H q) . (H k): the quant error is added to H k, so H q enters the correction.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def hadamard_matrix(size: int) -> Tensor:
    """Orthonormal symmetric float32 [size, size]: Sylvester's matrix of the largest power of two that divides `size`,
    repeated along the diagonal when that is not all of it."""
    power = size & -size
    block = torch.ones(1, 1, dtype=torch.float32)
    while len(block) < power:
        block = torch.cat([torch.cat([block, block], dim=1), torch.cat([block, -block], dim=1)])
    return torch.block_diag(*[block / power**0.5] * (size // power))


@lru_cache(maxsize=16)
def matrix_on(device: torch.device, size: int) -> Tensor:
    """The matrix on a device."""
    return hadamard_matrix(size).to(device)
