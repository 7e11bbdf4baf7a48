"""Keys or values of a chunk -> klt pages: transform, choose scales, round and pack, one kernel each.

Reference: `KltCodec.encode`. Between the kernels the coded coefficients are kept in float32, in a workspace at most
twice as large as the BF16 tokens of one layer of the chunk. Bytes agree with the reference except for rounding, and for
4-bit codes near an edge between two levels, where the reference may be off by half a cell.

Nothing here waits for the device: values that cannot be stored set a flag, which the caller checks once, at the end of
the step.
"""

from __future__ import annotations

from torch import Tensor

from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.klt.kernels.pack import pack
from pagedvid.codecs.klt.kernels.scales import choose_scales
from pagedvid.codecs.klt.kernels.transform import transform


def encode_klt(x_nHD: Tensor, records: Tensor, layout: KltLayout, pages_HP: Tensor) -> Tensor:
    """Writes tokens [n, H, D] (float32 or bfloat16, D contiguous) into the pages `pages_HP` int32 [H, P] of the pool.

    Keys are given before rotary embedding. `records`: the pool, uint8 [num_pages, page_bytes], contiguous; every byte
    of these pages is written, and no other.
    Returns flags uint8 [H, F]; any nonzero flag means that the head's values cannot be stored.
    Raises ShapeError for other heads than the layout's, or pages that do not fit the tokens.
    """
    layout.check(x_nHD, pages_HP)
    normal_HKU, bad = transform(x_nHD, layout, pages_HP.shape[1])
    choose_scales(normal_HKU, records, layout, pages_HP)
    pack(normal_HKU, records, layout, pages_HP)
    return bad
