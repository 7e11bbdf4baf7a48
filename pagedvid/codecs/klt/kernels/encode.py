"""Keys or values of a chunk -> klt pages: transform, choose scales, round and pack, one kernel each.

Reference: `KltCodec.encode`. Between the kernels the coefficients that get codes lie in a workspace of 4 bytes each, so
at most twice the BF16 tokens of one layer of the chunk. Bytes agree with the reference but for rounding, and for 4-bit
codes beside an edge between two levels, where the reference may be half a cell off.

Nothing here waits for the device: values that cannot be stored set a flag, which the caller looks at once, when the
step ends.
"""

from __future__ import annotations

from torch import Tensor

from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.klt.kernels.pack import pack
from pagedvid.codecs.klt.kernels.scales import choose_scales
from pagedvid.codecs.klt.kernels.transform import transform


def encode_klt(x_nHD: Tensor, records: Tensor, layout: KltLayout, pages_HP: Tensor) -> Tensor:
    """Writes tokens [n, H, D] (float32 or bfloat16, D contiguous) into the pages `pages_HP` int32 [H, P] of the pool.

    Keys come as they are before rotary embedding. `records`: the pool, uint8 [num_pages, page_bytes], contiguous; every
    byte of the pages is written and no other.
    Returns flags uint8 [H, F]: nonzero somewhere in the row of a head whose values cannot be stored.
    Raises ShapeError for other heads than the layout's, or pages that do not fit the tokens.
    """
    layout.check(x_nHD, pages_HP)
    normal_HKU, bad = transform(x_nHD, layout, pages_HP.shape[1])
    choose_scales(normal_HKU, records, layout, pages_HP)
    pack(normal_HKU, records, layout, pages_HP)
    return bad
