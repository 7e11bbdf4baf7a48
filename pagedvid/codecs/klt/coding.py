"""The constants of one klt codec on one device, from calibration tables and a bit budget.

Axes: h KV heads; D head_dim; F frames of a block; b blocks of a page; N = F * D coefficients, K of them coded; "1"
stands for axes that broadcast over the pages of a row or the blocks of a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.heads import index_of
from pagedvid.codecs.klt.allocation import choose_segments
from pagedvid.codecs.klt.blocks import cosine_transform
from pagedvid.codecs.klt.levels import POSITIVE_LEVELS
from pagedvid.codecs.klt.spec import KltSpec
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import ConfigError


@dataclass(frozen=True, eq=False)
class KltCoding:
    """Constants for some KV heads of one layer. Coded coefficients are ranked by falling importance."""

    segments: Mapping[int, int]
    """The number of coefficients of each width in bits, the widest first; widths that do not occur are left out."""
    blocks: Tensor
    """0 .. b - 1."""
    mean_h1D: Tensor
    analysis_hDD: Tensor
    synthesis_hDD: Tensor
    analysed_mean_h1D: Tensor
    cosines_FF: Tensor
    rank_hN: Tensor
    """Rank of each coefficient, or K if it is not coded, int64."""
    taken_h1K1: Tensor
    """Index of each coded coefficient of a page's first block in the page's coefficients [F, b, D], flat, int64."""
    direction_h1K: Tensor
    """Direction of each coded coefficient, int64."""
    deviation_h1K: Tensor
    deviation_h1F1D: Tensor
    reach_K: Tensor
    """The largest level of each rank."""

    @staticmethod
    def of(spec: KltSpec, page: PageFormat, tables: KltTables) -> KltCoding:
        """Allocates the bits, alike for all heads of the layer.

        Raises ConfigError if the tables are not for the shape of the pages, or if the pages leave no bits for codes.
        """
        layout, num_blocks = tables.layout, spec.page_blocks(page)
        wanted = (page.head_dim, page.tokens_per_frame, page.frames_per_block)
        given = (tables.head_dim, layout.tokens_per_frame, layout.num_frames)
        if wanted != given:
            raise ConfigError(
                f"the tables for {spec} have head_dim, tokens per frame and frames per block {given}; the cache has "
                f"{wanted}. Calibrate this model: pagedvid calibrate"
            )
        segments = choose_segments(tables.spectrum_N, spec.bits_per_block(page))
        widths = {width: count for width, count in segments.items() if count}
        if not widths:
            raise ConfigError(
                f"pages of {page.num_bytes} bytes leave the blocks of {spec.name} no bits; raise page_rows"
            )
        return _coding(widths, num_blocks, tables)

    @cached_property
    def num_heads(self) -> int:
        """KV heads that these constants are for."""
        return len(self.mean_h1D)

    @cached_property
    def num_coded(self) -> int:
        """Coefficients of a block that are stored."""
        return self.direction_h1K.shape[-1]

    def of_heads(self, heads: Heads) -> KltCoding:
        """The constants for some of the heads: views of neighbours, copies of others."""
        index = index_of(heads, self.mean_h1D.device)
        constants: dict[str, Any] = {name: getattr(self, name)[index] for name in _BY_HEAD}
        return replace(self, **constants)

    def to(self, device: torch.device) -> KltCoding:
        """The same on another device."""
        tensors = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "segments"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


_BY_HEAD = (
    "mean_h1D",
    "analysis_hDD",
    "synthesis_hDD",
    "analysed_mean_h1D",
    "rank_hN",
    "taken_h1K1",
    "direction_h1K",
    "deviation_h1K",
    "deviation_h1F1D",
)


def _coding(segments: Mapping[int, int], num_blocks: int, tables: KltTables) -> KltCoding:
    num_heads, size = tables.order_hN.shape
    head_dim, num_coded = tables.head_dim, sum(segments.values())
    order_hK = tables.order_hN[:, :num_coded]
    ranks_hK = torch.arange(num_coded).expand(num_heads, -1)
    frame_hK, direction_hK = order_hK // head_dim, order_hK % head_dim
    return KltCoding(
        segments,
        torch.arange(num_blocks),
        tables.mean_hD[:, None],
        tables.analysis_hDD,
        tables.synthesis_hDD,
        tables.mean_hD[:, None] @ tables.analysis_hDD,
        cosine_transform(tables.layout.num_frames),
        torch.full((num_heads, size), num_coded, dtype=torch.int64).scatter_(1, order_hK, ranks_hK),
        (frame_hK * num_blocks * head_dim + direction_hK)[:, None, :, None],
        direction_hK[:, None],
        tables.deviation_hN.gather(1, order_hK)[:, None],
        tables.deviation_hN.view(num_heads, 1, -1, 1, head_dim),
        torch.cat(
            [torch.full((count,), POSITIVE_LEVELS[width][-1], dtype=torch.float32) for width, count in segments.items()]
        ),
    )
