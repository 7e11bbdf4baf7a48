"""What `KltCodec` knows of a model before it sees a token: transforms, importance, levels. See quant/klt.py.

Axes: h KV heads; D head_dim; F frames of a block; N = F * D coefficients; K coded ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.geometry import PAGE_ROWS
from pagedvid.quant.allocation import widths_by_rank
from pagedvid.quant.blocks import BlockLayout, cosine_transform
from pagedvid.quant.fields import WIDTHS


def bits_per_block(head_dim: int, blocks_in_page: int, page_rows: int = PAGE_ROWS) -> int:
    """Bits that the codes of one block may take: a page less its row of scales, shared evenly, in whole bytes."""
    return (page_rows - 1) * head_dim // blocks_in_page * 8


@dataclass(frozen=True)
class KltTables:
    """Calibration of keys or of values for some KV heads of one layer."""

    layout: BlockLayout
    page_blocks: int
    segments: Mapping[int, int]
    """Coefficients by width, of falling importance; the same in all heads and layers."""
    levels: Mapping[int, Tensor]
    """Reconstruction levels by width, ascending, in units of deviation times scale."""
    mean_hD: Tensor
    analysis_hDD: Tensor
    """Tokens (rows) times this give coefficients along D directions."""
    synthesis_hDD: Tensor
    """Its inverse."""
    order_hN: Tensor
    """Coefficient f * D + direction by rank, int64."""
    deviation_hN: Tensor
    """Standard deviation by rank; positive."""
    page_rows: int = PAGE_ROWS

    def __post_init__(self) -> None:
        used = sum(width * count for width, count in self.segments.items())
        allowed = bits_per_block(self.head_dim, self.page_blocks, self.page_rows)
        if used > allowed:
            raise ConfigError(f"segments {dict(self.segments)} take {used} bits of a block; the page has {allowed}")

    @property
    def num_heads(self) -> int:
        """KV heads described here."""
        return self.mean_hD.shape[0]

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.mean_hD.shape[-1]

    @property
    def num_coded(self) -> int:
        """Coefficients of a block that are stored."""
        return sum(self.segments.values())

    @property
    def page_tokens(self) -> int:
        """Tokens that one page holds."""
        return self.page_blocks * self.layout.num_frames

    def heads(self, heads: slice) -> KltTables:
        """The tables of some of the heads."""
        return self._with_heads(lambda x: x[heads])

    def repeat(self, times: int) -> KltTables:
        """All heads, `times` times over: for that many chunks at once."""
        return self._with_heads(lambda x: torch.cat([x] * times))

    def _with_heads(self, change: Callable[[Tensor], Tensor]) -> KltTables:
        return replace(
            self,
            mean_hD=change(self.mean_hD),
            analysis_hDD=change(self.analysis_hDD),
            synthesis_hDD=change(self.synthesis_hDD),
            order_hN=change(self.order_hN),
            deviation_hN=change(self.deviation_hN),
        )

    @cached_property
    def cosines_FF(self) -> Tensor:
        """The transform over frames."""
        return cosine_transform(self.layout.num_frames).to(self.mean_hD.device)

    @cached_property
    def coded_deviation_hK(self) -> Tensor:
        """Standard deviation of the coded coefficients."""
        return self.deviation_hN[:, : self.num_coded]

    @cached_property
    def coded_direction_hK(self) -> Tensor:
        """Direction of the coded coefficients, int64."""
        return self.order_hN[:, : self.num_coded] % self.head_dim

    @cached_property
    def reach_K(self) -> Tensor:
        """The largest magnitude that the levels of a rank cover."""
        by_width = {width: float(torch.minimum(-levels[0], levels[-1])) for width, levels in self.levels.items()}
        widths = widths_by_rank(self.segments, self.num_coded).tolist()
        return torch.tensor([by_width[width] for width in widths], device=self.mean_hD.device)

    @cached_property
    def variance_loss_hD(self) -> Tensor:
        """Variance along each direction that codes do not show, at scale 1, mean over the places of a block.

        Levels are means of their cells: a coefficient loses its share `gaussian_distortion`, a dropped one everything.
        """
        shares = {width: gaussian_distortion(self.levels[width]) for width in WIDTHS} | {0: 1.0}
        widths = widths_by_rank(self.segments, self.order_hN.shape[-1]).tolist()
        lost_hN = self.deviation_hN.square() * torch.tensor([shares[w] for w in widths], device=self.mean_hD.device)
        loss_hD = torch.zeros_like(self.mean_hD).scatter_add_(1, self.order_hN % self.head_dim, lost_hN)
        return loss_hD / self.layout.num_frames


def gaussian_distortion(levels: Tensor) -> float:
    """1 - variance of what a unit Gaussian is rounded to: positive when levels are means of their cells, negative for
    fine uniform levels, which add noise."""
    edges = torch.cat([torch.tensor([-math.inf]), ((levels[1:] + levels[:-1]) / 2).cpu(), torch.tensor([math.inf])])
    share = torch.special.ndtr(edges.double()).diff()
    levels = levels.double().cpu()
    variance = (share * levels.square()).sum() - (share * levels).sum().square()
    return float(1 - variance)
