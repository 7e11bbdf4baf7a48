"""The kernels for pages of per-token codes, as one object."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.base import PageKernels
from pagedvid.codecs.token.kernels.decode import decode_token
from pagedvid.codecs.token.kernels.encode import encode_token
from pagedvid.codecs.token.kernels.layout import TokenLayout
from pagedvid.codecs.token.kernels.step_sizes import mean_square_step_sizes
from pagedvid.rotary.angles import Angles
from pagedvid.rotary.tables import Arrival


class TokenKernels(PageKernels):
    """Pages of per-token codes."""

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout
        self.axes = layout.matrix

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
        decode_token(records, self.layout, pages_SHP, num_tokens, out_EJnHD, angles, inverse_scales_SH, out_heads_H)

    @override
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor:
        return encode_token(x_nHD, records, self.layout, pages_HP)

    @override
    def mean_square_step_sizes(
        self, records: Tensor, pages_SHP: Tensor, num_tokens: int, first_token: int = 0
    ) -> Tensor | None:
        return mean_square_step_sizes(records, self.layout, pages_SHP, num_tokens, first_token)
