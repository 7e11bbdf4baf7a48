"""Rotation over the head dimension before quantizing per token (QuaRot, arXiv 2404.00456): outlier channels are spread
evenly, so that one step serves a whole group.

With the orthonormal symmetric H, q . k = (H q) . (H k): noise is added to H k, so H q enters the correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from pagedvid.codecs.base import FP16_MAX, not_storable
from pagedvid.codecs.page import PageFormat, read_codec
from pagedvid.codecs.token.codec import TokenCodec
from pagedvid.errors import ConfigError


def hadamard_matrix(size: int) -> Tensor:
    """Orthonormal symmetric [size, size]: Sylvester's matrix of the largest power of two that divides `size`, repeated
    along the diagonal when that is not all of it."""
    power = size & -size
    block = torch.ones(1, 1, dtype=torch.float32)
    while len(block) < power:
        block = torch.cat([torch.cat([block, block], dim=1), torch.cat([block, -block], dim=1)])
    return torch.block_diag(*[block / power**0.5] * (size // power))


@lru_cache(maxsize=16)
def _matrix_on(device: torch.device, size: int) -> Tensor:
    return hadamard_matrix(size).to(device)


@dataclass(frozen=True)
class HadamardCodec:
    """`TokenCodec` on rotated channels."""

    page: PageFormat
    name: str

    def __post_init__(self) -> None:
        if read_codec(self.name).family != "hadamard":
            raise ConfigError(f"{self.name!r} is not a hadamard codec; these are called like hadamard2-g64")

    @cached_property
    def tokens(self) -> TokenCodec:
        """What stores the rotated channels."""
        return TokenCodec(self.page, self.name)

    @property
    def stores_rotated(self) -> bool:
        """True: keys are stored after rotary embedding."""
        return True

    @cached_property
    def axes(self) -> Tensor | None:
        """H: its rows are the directions of the rotated channels."""
        return self._matrix(torch.device("cpu"))

    def encode(self, x_RnD: Tensor) -> Tensor:
        """See `Codec.encode`. Rotated values, too, must lie below the largest fp16 number."""
        if not bool(torch.isfinite(x_RnD).all()):  # or a single NaN is reported as a whole token of them
            raise not_storable(x_RnD, FP16_MAX)
        return self.tokens.encode(x_RnD.float() @ self._matrix(x_RnD.device))

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """See `Codec.decode`."""
        rotated = self.tokens.decode(
            records_RPB, num_tokens, torch.empty(out.shape, dtype=torch.float32, device=out.device)
        )
        return out[:, :num_tokens].copy_(rotated @ self._matrix(out.device))

    def mean_square_steps(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """See `Codec.mean_square_steps`: along the rows of H."""
        return self.tokens.mean_square_steps(records_RPB, num_tokens, first_token)

    def per_token_steps(self, records_RPB: Tensor, num_tokens: int) -> Tensor:
        """The step of every token and group of rotated channels, float32 [R, n, G]."""
        return self.tokens.per_token_steps(records_RPB, num_tokens)

    def _matrix(self, device: torch.device) -> Tensor:
        return _matrix_on(device, self.page.head_dim)
