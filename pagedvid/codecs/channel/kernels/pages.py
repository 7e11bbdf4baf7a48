"""The kernels for pages of channel codes, as one object, and the half of it that plain values share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.base import PageKernels
from pagedvid.codecs.channel.kernels.decode import decode
from pagedvid.codecs.channel.kernels.encode import encode
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.channel.kernels.step_sizes import mean_square_step_sizes
from pagedvid.rotary.axis_tables import AngleTables
from pagedvid.rotary.tables import Arrival


@dataclass(frozen=True)
class LayoutKernels(PageKernels):
    """Pages whose records a `PageLayout` describes: they are read alike, whatever is in them."""

    layout: PageLayout
    takes_arrivals = True

    @property
    @override
    def fused_layout(self) -> PageLayout:
        return self.layout

    @override
    def decode(
        self, records: Tensor, pages_HP: Tensor, out_nHD: Tensor, angles: AngleTables | None = None, frame_row: int = 0
    ) -> None:
        decode(records, self.layout, pages_HP, out_nHD, angles, frame_row)


class ChannelKernels(LayoutKernels):
    """Pages of channel codes."""

    @override
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor:
        return encode(x_nHD, records, self.layout, pages_HP, **arrival_options(arrival))

    @override
    def mean_square_step_sizes(self, records: Tensor, pages_HP: Tensor, tokens: slice) -> Tensor | None:
        return mean_square_step_sizes(records, self.layout, pages_HP, tokens.stop - tokens.start, tokens.start)


def arrival_options(arrival: Arrival | None) -> dict[str, Any]:
    """Arguments of `encode` by which keys that arrive so are un-rotated, in half layout. None: they already are."""
    if arrival is None:
        return {}
    rotate = 0 if arrival.rotated_by is None else -1
    return {"angles": arrival.rotated_by, "rotate": rotate, "pairs": arrival.layout}
