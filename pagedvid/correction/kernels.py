"""Device functions of the correction: b(query, page) of correction/formula.py.

The second order is one small matrix product, [queries, D] x [D, pages], for 16 pages at once. Channels in which a query
of the block reaches x >= 0.5 are hot: the exact form replaces the second order there, one channel at a time. Usual
heads have no hot channel, so that the loop ends at once; outlier heads have a few.

The exact form in all channels would take three transcendental functions per (query, page, channel). The softmax takes
one per (query, key), a third as many for pages of 128 tokens with 128 channels. The small product has 16 columns, while
the scores of the same 16 pages have 2048.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pagedvid.correction.formula import HOT_CHANNEL_X

SLOTS = 16
"""Pages whose b is computed together: the fewest columns that a tensor core takes."""
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
def is_hot(q_square, square_step_size, quarter):
    """[S, HALF]: whether any query's x^2 = q_square * square_step_size * quarter is large; not for negative squares."""
    return tl.max(q_square, axis=0)[None, :] * square_step_size * quarter >= HOT_U


@triton.jit
def exact_part(b, q_square, hot_square, quarter, HALF: tl.constexpr):
    """b [M, S] plus the exact form of the hot channels, one by one; q_square [M, HALF], hot_square [S, HALF]."""
    channel = tl.arange(0, HALF)
    waiting = tl.where(tl.max(hot_square, axis=0) > 0.0, channel, -1)
    current = tl.max(waiting, axis=0)
    while current >= 0:
        chosen = (channel == current)[None, :]
        q_column = tl.sum(tl.where(chosen, q_square, 0.0), axis=1)
        square_column = tl.sum(tl.where(chosen, hot_square, 0.0), axis=1)
        b += log_sinhc_of_square(q_column[:, None] * square_column[None, :] * quarter)
        waiting = tl.where(channel == current, -1, waiting)
        current = tl.max(waiting, axis=0)
    return b


@triton.jit
def cold_part(q_square, cold_square, quarter, MATMUL: tl.constexpr):
    """x^2 / 6 summed over the channels, [M, S]."""
    product = tl.dot(q_square.to(MATMUL), tl.trans(cold_square.to(MATMUL)), input_precision="ieee")
    return product * (quarter / 6.0)


@triton.jit
def bias_of_pages(
    q_first, q_second, first, second, scale, MATMUL: tl.constexpr, HALF: tl.constexpr, ROTATES: tl.constexpr
):
    """b [M, S] from the halves of queries [M, HALF] and the squared step sizes of both halves of channels [S, HALF].

    ROTATES: keys are rotated between storage and score, so that pairs of query channels take their mean square.
    """
    quarter = scale * scale / 4.0
    square = q_first * q_first
    other_square = q_second * q_second
    if ROTATES:
        square = (square + other_square) * 0.5
        other_square = square
    hot = is_hot(square, first, quarter)
    other_hot = is_hot(other_square, second, quarter)
    cold = tl.where(hot, 0.0, first)
    other_cold = tl.where(other_hot, 0.0, second)
    if ROTATES:
        b = cold_part(square, cold + other_cold, quarter, MATMUL)
    else:
        b = cold_part(square, cold, quarter, MATMUL) + cold_part(other_square, other_cold, quarter, MATMUL)
    b = exact_part(b, square, tl.where(hot, first, 0.0), quarter, HALF)
    return exact_part(b, other_square, tl.where(other_hot, second, 0.0), quarter, HALF)
