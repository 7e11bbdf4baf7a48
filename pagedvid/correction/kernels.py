"""Device functions of the correction: b(query) of one set of keys, as in correction/formula.py.

To second order, b is one product-sum over the channels. Channels in which a query of the block reaches x >= 0.5 are
hot: there the exact form takes the place of the second order, one channel at a time, and the channel's column of the
queries is loaded again, from the cache, since registers cannot be indexed. Usual heads have no hot channel, so that the
loop ends at once; outlier heads have a few. (The reference decides by range instead of by block: within 1 % of b.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from pagedvid.correction.formula import HOT_CHANNEL_X

HOT_U = tl.constexpr(HOT_CHANNEL_X**2)


@triton.jit
def log_sinhc_of_square(u):
    """log(sinh(x) / x) from u = x^2, float32: the series below 1 and the closed form above, as in `log_sinhc`."""
    small = tl.minimum(u, 1.0)
    tail = 1.0 - small * 0.0808080808 * (1.0 - small * 0.08437)
    tail = 1.0 - small * 0.075 * tail
    tail = 1.0 - small * 0.0634920635 * tail
    series = small * (1.0 / 6.0) * (1.0 - small * (1.0 / 30.0) * tail)
    x = tl.sqrt(tl.maximum(u, 1.0))
    closed = x + tl.log(1.0 - tl.exp(-2.0 * x)) - tl.log(2.0 * x)
    return tl.where(u < 1.0, series, closed)


@triton.jit
def bias_of_rows(q_rows, mask, square, pairs, scale, HALF: tl.constexpr):
    """b [M] of the queries at the row pointers `q_rows` [M], in half layout; `mask` [M] says which there are.

    square: pointer to the squares of the channels [2 * HALF], float32, which may be negative. pairs: 1 if rotary pairs
    take their mean square, else 0.
    """
    half = tl.arange(0, HALF)
    quarter = scale * scale / 4.0
    places = q_rows[:, None] + half[None, :]
    q_first = tl.load(places, mask=mask[:, None], other=0.0).to(tl.float32)
    q_second = tl.load(places + HALF, mask=mask[:, None], other=0.0).to(tl.float32)
    q_first *= q_first
    q_second *= q_second
    if pairs != 0:
        q_first = (q_first + q_second) * 0.5
        q_second = q_first
    first = tl.load(square + half)
    second = tl.load(square + HALF + half)
    is_hot = tl.max(q_first, axis=0) * first * quarter >= HOT_U
    is_hot_too = tl.max(q_second, axis=0) * second * quarter >= HOT_U
    cold = q_first * tl.where(is_hot, 0.0, first)[None, :] + q_second * tl.where(is_hot_too, 0.0, second)[None, :]
    b = tl.sum(cold, axis=1) * (quarter / 6.0)
    waiting = tl.maximum(tl.where(is_hot, half, -1), tl.where(is_hot_too, HALF + half, -1))
    channel = tl.max(waiting, axis=0)
    while channel >= 0:
        column = tl.load(q_rows + channel, mask=mask, other=0.0).to(tl.float32)
        column *= column
        if pairs != 0:
            partner = tl.load(q_rows + (channel + HALF) % (2 * HALF), mask=mask, other=0.0).to(tl.float32)
            column = (column + partner * partner) * 0.5
        b += log_sinhc_of_square(column * (tl.load(square + channel) * quarter))
        # The first channel of a pair waits until the second one is done.
        waiting = tl.where(half + HALF == channel, tl.where(is_hot, half, -1), tl.where(half == channel, -1, waiting))
        channel = tl.max(waiting, axis=0)
    return b
