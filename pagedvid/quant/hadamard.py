"""Rotation over the head dimension before quantizing per token (QuaRot, arXiv 2404.00456): outlier channels are spread
evenly, so that one step serves a whole group.

With the orthonormal symmetric H, q . k = (H q) . (H k): noise is added to H k, so H q enters the correction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.quant.token import TokenCodec


def hadamard_matrix(size: int) -> Tensor:
    """Orthonormal symmetric [size, size]: Sylvester's matrix of the largest power of two that divides `size`, repeated
    along the diagonal when that is not all of it."""
    power = size & -size
    block = torch.ones(1, 1)
    while len(block) < power:
        block = torch.cat([torch.cat([block, block], dim=1), torch.cat([block, -block], dim=1)])
    return torch.block_diag(*[block / power**0.5] * (size // power))


@dataclass(frozen=True)
class HadamardCodec:
    """`TokenCodec` on rotated channels."""

    tokens: TokenCodec

    def encode(self, x_RnD: Tensor) -> Tensor:
        """See `TokenCodec.encode`."""
        return self.tokens.encode(x_RnD.float() @ self._matrix(x_RnD))

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """See `TokenCodec.decode`."""
        self.tokens.decode(records_RPB, num_tokens, out)
        out.copy_(out @ self._matrix(out))
        return out[:, :num_tokens]

    def axes(self) -> Tensor:
        """[D, D]: the rows are the directions that `directional_variance_change` speaks of."""
        return hadamard_matrix(self.tokens.head_dim)

    def directional_variance_change(self, records_RPB: Tensor, num_tokens: int) -> Tensor:
        """Var k' - Var k by rotated channel, float32 [R, D]; to be weighted by (H q)^2."""
        return self.tokens.variance_change(records_RPB, num_tokens)

    def variance_change(self, records_RPB: Tensor, num_tokens: int) -> Tensor:
        """Var k' - Var k by channel, float32 [R, D]; covariances between channels are left out."""
        return self.directional_variance_change(records_RPB, num_tokens) @ self.axes().square()

    def _matrix(self, x: Tensor) -> Tensor:
        return self.axes().to(x.device, x.dtype if x.is_floating_point() else torch.float32)
