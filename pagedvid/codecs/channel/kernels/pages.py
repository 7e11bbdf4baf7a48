"""The kernels for pages of channel codes, as one object."""

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
from pagedvid.rotary.angles import Angles
from pagedvid.rotary.tables import Arrival


@dataclass(frozen=True)
class ChannelKernels(PageKernels):
    """Pages of channel codes."""

    layout: PageLayout
    takes_arrivals = True

    @override
    def decode(
        self,
        records: Tensor,
        pages_SHP: Tensor,
        num_tokens: int,
        out_EJnHD: Tensor,
        angles: Angles | None = None,
        inverse_scales_SH: Tensor | None = None,
        out_heads_H: Tensor | None = None,
    ) -> None:
        decode(records, self.layout, pages_SHP, num_tokens, out_EJnHD, angles, inverse_scales_SH, out_heads_H)

    @override
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor:
        return encode(x_nHD, records, self.layout, pages_HP, **arrival_options(arrival))

    @override
    def mean_square_step_sizes(
        self, records: Tensor, pages_SHP: Tensor, num_tokens: int, first_token: int = 0
    ) -> Tensor | None:
        return mean_square_step_sizes(records, self.layout, pages_SHP, num_tokens, first_token)


def arrival_options(arrival: Arrival | None) -> dict[str, Any]:
    """Arguments of `encode` by which keys that arrive so are un-rotated, in half layout. None: they already are."""
    if arrival is None:
        return {}
    rotate = 0 if arrival.rotated_by is None else -1
    return {"angles": arrival.rotated_by, "rotate": rotate, "pairs": arrival.layout}
