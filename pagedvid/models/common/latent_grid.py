"""Latent grids as tokens and back. A token's channels are (latent channel, patch row, patch column).

Axes: C latent channels, F frames, R rows and S columns of the latent grid; n tokens of a frame, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pagedvid.errors import ConfigError


@dataclass(frozen=True)
class LatentGrid:
    """How a latent frame of `rows` x `columns` is cut into patches."""

    channels: int
    rows: int
    columns: int
    patch: int

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < self.patch or self.rows % self.patch or self.columns % self.patch:
            raise ConfigError(
                f"a latent frame has {self.rows} x {self.columns} positions; this model takes multiples of {self.patch}"
            )

    @property
    def token_rows(self) -> int:
        """Tokens from top to bottom."""
        return self.rows // self.patch

    @property
    def token_columns(self) -> int:
        """Tokens from left to right."""
        return self.columns // self.patch

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a frame."""
        return self.token_rows * self.token_columns

    @property
    def token_channels(self) -> int:
        """Numbers in a token."""
        return self.channels * self.patch**2

    def tokens(self, latents_CFRS: Tensor) -> Tensor:
        """[C, F, R, S] -> [F, n, token_channels]."""
        p = self.patch
        split = latents_CFRS.unflatten(3, (self.token_columns, p)).unflatten(2, (self.token_rows, p))  # C F r p s p
        return split.permute(1, 2, 4, 0, 3, 5).reshape(-1, self.tokens_per_frame, self.token_channels)

    def grid(self, tokens_FnC: Tensor) -> Tensor:
        """[F, n, token_channels] -> [C, F, R, S]."""
        p = self.patch
        split = tokens_FnC.unflatten(2, (self.channels, p, p)).unflatten(1, (self.token_rows, self.token_columns))
        return split.permute(3, 0, 1, 4, 2, 5).reshape(self.channels, -1, self.rows, self.columns)
