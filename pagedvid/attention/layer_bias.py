"""The correction of the chunks that one layer reads: step sizes, alpha, and which form of the queries b takes.

Axes: E ranges, J corrected sequences, S = E * J chunks, h heads of a piece, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from pagedvid.attention.merge import BiasTerms
from pagedvid.attention.tiles import Group, Piece, Variant, by_range
from pagedvid.cache.pool import PagePool


@dataclass(frozen=True)
class BiasPlanner:
    """Makes the terms of b from what pages and chunks keep."""

    pool: PagePool
    head_dim: int
    _on_device: dict[tuple[tuple[int, ...], ...], Tensor] = field(default_factory=dict, repr=False)

    def terms(
        self, groups: Sequence[Group], layer: int, heads: slice, num_ranges: int, *, pulls_queries: bool
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
                for _, each in groupby(group.pieces, lambda piece: piece.first_token):  # the same columns
                    pieces = list(each)
                    by_heads, axes = zip(*(self._square(piece, layer, heads, tokens) for piece in pieces), strict=True)
                    squares.append(torch.cat(by_heads, 1).unflatten(0, (num_ranges, -1)))
                    alphas.append(self._alpha(pieces[0], layer, heads).unflatten(0, (num_ranges, -1)))
                    for column in pieces[0].columns:
                        numbers.append(_variant(variants, Variant(axes[0], column, part), pulls_queries))
                        pairs.append(pieces[0].source is not None and pieces[0].source.rotates)
        flags = self._numbers(tuple(numbers), tuple(pairs))
        return BiasTerms(torch.cat(squares, 1), torch.cat(alphas, 1), *flags), tuple(variants)

    def _numbers(self, *rows: tuple[int, ...]) -> Tensor:
        """int32 [rows, J] on the device, to which the same numbers are copied once."""
        if rows not in self._on_device:
            self._on_device[rows] = torch.tensor(rows, dtype=torch.int32).to(self.pool.device)
        return self._on_device[rows]

    def _square(self, piece: Piece, layer: int, heads: slice, tokens: slice) -> tuple[Tensor, Tensor | None]:
        """Mean of step_size^2 of some tokens of every chunk, or 12 times the change of variance, float32 [S, h, D]; and
        the axes along which it is given."""
        chunks = [read.chunk for read in by_range(piece.columns)]
        if piece.source is not None and not piece.source.by_variance:
            square = piece.keys.mean_square_step_sizes(
                self.pool.records, piece.key_pages, tokens.stop - tokens.start, tokens.start
            )
            if square is not None:
                return square, piece.keys.axes
        kept = [
            chunk.variance[layer, heads][piece.heads or slice(None)] for chunk in chunks if chunk.variance is not None
        ]
        if piece.source is not None and kept:
            return 12 * torch.stack(kept).to(self.pool.device, torch.float32), None
        shape = (*piece.key_pages.shape[:2], self.head_dim)
        return torch.zeros(shape, dtype=torch.float32, device=self.pool.device), None

    def _alpha(self, piece: Piece, layer: int, heads: slice) -> Tensor:
        """Of all heads of the tile, float32 [S, h]."""
        kept = [read.chunk.alpha for read in by_range(piece.columns)]
        if piece.source is None or any(alpha is None for alpha in kept):
            shape = (len(kept), heads.stop - heads.start)
            return torch.ones(shape, dtype=torch.float32, device=self.pool.device)
        return torch.stack([alpha[layer, heads] for alpha in kept if alpha is not None]).to(self.pool.device)


def _variant(variants: list[Variant], wanted: Variant, is_own: bool) -> int:
    """The number of a variant, which is added unless there is one with the same axes. `is_own`: add it anyway."""
    for number, each in enumerate(variants):
        if each.axes is wanted.axes and not is_own:
            return number
    variants.append(wanted)
    return len(variants) - 1
