"""The kernels for klt pages, as one object. Storing: transform, choose scales, round and pack, one kernel each.

Reference: `KltCodec.encode`. Between the kernels the coded coefficients are kept in float32, in a workspace at most
twice as large as the BF16 tokens of one layer of the chunk. Bytes agree with the reference except for rounding, and for
4-bit codes near an edge between two levels, where the reference may be off by half a cell.

Nothing here waits for the device: values that cannot be stored set a flag, which the caller checks once, at the end of
the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.base import PageKernels
from pagedvid.codecs.klt.kernels.decode import decode_klt
from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.klt.kernels.pack import pack
from pagedvid.codecs.klt.kernels.scales import choose_scales
from pagedvid.codecs.klt.kernels.transform import transform
from pagedvid.rotary.angles import Angles
from pagedvid.rotary.tables import Arrival


def encode_klt(x_nHD: Tensor, records: Tensor, layout: KltLayout, pages_HP: Tensor) -> Tensor:
    """Writes tokens [n, H, D] (float32 or bfloat16, D contiguous) into the pages `pages_HP` int32 [H, P] of the pool.

    Keys are given before rotary embedding. `records`: the pool, uint8 [num_pages, page_bytes], contiguous; every byte
    of these pages is written, and no other.
    Returns flags uint8 [H, F]; any nonzero flag means that the head's values cannot be stored.
    Raises ShapeError for other heads than the layout's, or pages that do not fit the tokens.
    """
    layout.check(x_nHD.shape, pages_HP)
    normal_HKU, bad = transform(x_nHD, layout, pages_HP.shape[1])
    choose_scales(normal_HKU, records, layout, pages_HP)
    pack(normal_HKU, records, layout, pages_HP)
    return bad


@dataclass(frozen=True)
class KltKernels(PageKernels):
    """Pages of klt codes."""

    layout: KltLayout

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
        decode_klt(records, self.layout, pages_SHP, num_tokens, out_EJnHD, angles, inverse_scales_SH, out_heads_H)

    @override
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor:
        return encode_klt(x_nHD, records, self.layout, pages_HP)
