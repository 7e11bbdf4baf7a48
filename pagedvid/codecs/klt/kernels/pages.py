"""The kernels for klt pages, as one object."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.base import PageKernels
from pagedvid.codecs.klt.kernels.decode import decode_klt
from pagedvid.codecs.klt.kernels.encode import encode_klt
from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.rotary.axis_tables import AngleTables
from pagedvid.rotary.tables import Arrival


@dataclass(frozen=True)
class KltKernels(PageKernels):
    """Pages of klt codes."""

    layout: KltLayout

    @override
    def decode(
        self, records: Tensor, pages_HP: Tensor, out_nHD: Tensor, angles: AngleTables | None = None, frame_row: int = 0
    ) -> None:
        decode_klt(records, self.layout, pages_HP, out_nHD, angles, frame_row)

    @override
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor:
        return encode_klt(x_nHD, records, self.layout, pages_HP)
