"""The Hadamard matrix over the head dimension (QuaRot, arXiv 2404.00456). It spreads outlier channels evenly, so that
one step size serves a whole group.

H is orthonormal and symmetric, so q . k = (H q) . (H k). The quant error is added to H k, so the correction takes H q.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def hadamard_matrix(size: int) -> Tensor:
    """Orthonormal and symmetric, float32 [size, size].

    Sylvester's matrix of the largest power of two that divides `size`, repeated along the diagonal.
    """
    power = size & -size
    block = torch.ones(1, 1, dtype=torch.float32)
    while len(block) < power:
        block = torch.cat([torch.cat([block, block], dim=1), torch.cat([block, -block], dim=1)])
    return torch.block_diag(*[block / power**0.5] * (size // power))


@lru_cache(maxsize=16)
def matrix_on(device: torch.device, size: int) -> Tensor:
    """`hadamard_matrix` on a device, cached."""
    return hadamard_matrix(size).to(device)
