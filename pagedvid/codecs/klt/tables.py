"""What a calibration knows of the keys, or of the values, of one layer. It serves klt codecs of any number of bits.

Axes: h KV heads; D head_dim; F frames of a block; N = F * D coefficients, number f * D + direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.errors import ConfigError


@dataclass(frozen=True, eq=False)
class KltTables:
    """Calibrated tables for the keys or the values of some KV heads of one layer."""

    layout: BlockLayout
    spectrum_N: Tensor
    """Importance by rank, as a share of the head's total, averaged over the layer's heads. Bits are allocated by it."""
    mean_hD: Tensor
    analysis_hDD: Tensor
    """Tokens (rows), less the mean, times this matrix are coefficients along D directions."""
    deviation_hN: Tensor
    """Standard deviation of every coefficient; positive."""
    order_hN: Tensor
    """Numbers of the coefficients by falling importance, int64."""

    def __post_init__(self) -> None:
        heads, head_dim = self.mean_hD.shape
        size = self.layout.num_frames * head_dim
        expected = {
            "spectrum_N": (size,),
            "analysis_hDD": (heads, head_dim, head_dim),
            "deviation_hN": (heads, size),
            "order_hN": (heads, size),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ConfigError(f"{name} has shape {tuple(getattr(self, name).shape)}; these tables need {shape}")

    @property
    def num_heads(self) -> int:
        """KV heads that these tables are for."""
        return self.mean_hD.shape[0]

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.mean_hD.shape[1]

    @cached_property
    def synthesis_hDD(self) -> Tensor:
        """The inverse of the analysis."""
        return torch.linalg.inv(self.analysis_hDD.double()).float()
