"""The correction of the chunks that one layer reads: step sizes, alpha, and which form of the queries b takes.

Axes: E ranges, J corrected sequences, S = E * J chunks, h heads of one codec, H heads of a tile, D
head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedvid.attention.merge import BiasTerms
from pagedvid.attention.tiles import Decoding, Group, Piece, Variant, by_range
from pagedvid.cache.pool import PagePool
from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.heads import index_of


@dataclass(frozen=True)
class BiasPlanner:
    """Makes the terms of b from what pages and chunks keep."""

    pool: PagePool
    head_dim: int
    _on_device: dict[tuple[tuple[int, ...], ...], Tensor] = field(default_factory=dict, repr=False)

    def terms(
        self, groups: Sequence[Group], layer: int, heads: Heads, num_ranges: int, *, pulls_queries: bool
    ) -> tuple[BiasTerms | None, tuple[Variant, ...]]:
        """Of the partials of all groups, in the heads of a tile; None: none is corrected.

        `pulls_queries`: whether every part takes queries of its own.
        """
        if all(piece.source is None for group in groups for piece in group.pieces):
            return None, ()
        squares, alphas, numbers, pairs = [], [], [], []
        variants: list[Variant] = []
        for group in groups:
            for part, tokens in enumerate(group.parts):
                for piece in group.pieces:
                    square_SHD, axes = self._square(piece, layer, heads, tokens)
                    squares.append(square_SHD.unflatten(0, (num_ranges, -1)))
                    alphas.append(self._alpha(piece, layer, heads).unflatten(0, (num_ranges, -1)))
                    for column in piece.columns:
                        numbers.append(_variant(variants, Variant(axes, column, part), pulls_queries))
                        pairs.append(piece.source is not None and piece.source.rotates)
        flags = self._numbers(tuple(numbers), tuple(pairs))
        return BiasTerms(torch.cat(squares, 1), torch.cat(alphas, 1), *flags), tuple(variants)

    def _numbers(self, *rows: tuple[int, ...]) -> Tensor:
        """int32 [rows, J] on the device, to which the same numbers are copied once."""
        if rows not in self._on_device:
            self._on_device[rows] = torch.tensor(rows, dtype=torch.int32).to(self.pool.device)
        return self._on_device[rows]

    def _square(self, piece: Piece, layer: int, heads: Heads, tokens: slice) -> tuple[Tensor, Tensor | None]:
        """Mean of step_size^2 of some tokens of every chunk, or 12 times the change of variance, float32 [S, H, D]; and
        the axes along which it is given, which are the same for all heads of a tile."""
        squares, axes = zip(
            *(self._square_of_codec(piece, each, layer, heads, tokens) for each in piece.keys), strict=True
        )
        if len(squares) == 1:
            return squares[0], axes[0]
        square_SHD = squares[0].new_empty(len(squares[0]), len(heads), self.head_dim)
        for decoding, square_ShD in zip(piece.keys, squares, strict=True):
            square_SHD[:, decoding.heads] = square_ShD
        return square_SHD, axes[0]

    def _square_of_codec(
        self, piece: Piece, decoding: Decoding, layer: int, heads: Heads, tokens: slice
    ) -> tuple[Tensor, Tensor | None]:
        """`_square` of the heads that share a codec, float32 [S, h, D]."""
        if piece.source is not None and not piece.source.by_variance:
            square_ShD = decoding.kernels.mean_square_step_sizes(
                self.pool.records, decoding.pages_ShP, tokens.stop - tokens.start, tokens.start
            )
            if square_ShD is not None:
                return square_ShD, decoding.kernels.axes
        variances = [read.chunk.variance for read in by_range(piece.columns)]
        kept = [variance[layer, index_of(heads, variance.device)] for variance in variances if variance is not None]
        if piece.source is not None and kept:
            variance_SHD = torch.stack(kept).to(self.pool.device, torch.float32)
            return 12 * variance_SHD[:, decoding.heads], None
        shape = (*decoding.pages_ShP.shape[:2], self.head_dim)
        return torch.zeros(shape, dtype=torch.float32, device=self.pool.device), None

    def _alpha(self, piece: Piece, layer: int, heads: Heads) -> Tensor:
        """Of all heads of the tile, float32 [S, H]."""
        kept = [read.chunk.alpha for read in by_range(piece.columns)]
        if piece.source is None or any(alpha is None for alpha in kept):
            return torch.ones(len(kept), len(heads), dtype=torch.float32, device=self.pool.device)
        rows = [alpha[layer, index_of(heads, alpha.device)] for alpha in kept if alpha is not None]
        return torch.stack(rows).to(self.pool.device)


def _variant(variants: list[Variant], wanted: Variant, is_own: bool) -> int:
    """The number of a variant, which is added unless there is one with the same axes. `is_own`: add it anyway."""
    for number, each in enumerate(variants):
        if each.axes is wanted.axes and not is_own:
            return number
    variants.append(wanted)
    return len(variants) - 1
