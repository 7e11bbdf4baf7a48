"""Device functions of the correction: b(query) of one set of keys, as in correction/formula.py.

Usual heads have no query and channel with x >= 0.5, so that the second order, one product-sum over the channels, is
all. Blocks of queries that have one take the exact form there, in registers: cutting single channels out of them, or
loading these again, costs as much for five channels as this does for all of them.

The reference takes the exact form in a whole channel if one query of the range needs it, which differs by less than 1 %
of b. Here no query depends on another one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pagedvid.correction.formula import HOT_CHANNEL_X

HOT_U = tl.constexpr(HOT_CHANNEL_X**2)


@triton.jit
def squares_of_rows(q_rows, mask, pairs, HALF: tl.constexpr):
    """Squares of the queries at the row pointers `q_rows` [M], in half layout; zero where `mask` [M] is not set.

    pairs: 1 if rotary pairs take their mean square, else 0. Returns those of both halves of the channels, float32 [M,
    HALF] each.
    """
    places = q_rows[:, None] + tl.arange(0, HALF)[None, :]
    first = tl.load(places, mask=mask[:, None], other=0.0).to(tl.float32)
    second = tl.load(places + HALF, mask=mask[:, None], other=0.0).to(tl.float32)
    first *= first
    second *= second
    mean = (first + second) * 0.5
    return tl.where(pairs != 0, mean, first), tl.where(pairs != 0, mean, second)


@triton.jit
def bias_of_rows(q_first, q_second, square, scale, HALF: tl.constexpr):
    """b [M], natural log units, of queries whose squares are `q_first` and `q_second` [M, HALF].

    square: pointer to the squares of the channels [2 * HALF], float32: step_size^2, or less than zero where variance
    was lost.
    """
    half = tl.arange(0, HALF)
    quarter = scale * scale / 4.0
    u_first = q_first * (tl.load(square + half) * quarter)[None, :]
    u_second = q_second * (tl.load(square + HALF + half) * quarter)[None, :]
    if tl.max(tl.maximum(u_first, u_second)) < HOT_U:
        b = tl.sum(u_first + u_second, axis=1) * (1.0 / 6.0)
    else:
        b = tl.sum(with_exact_form(u_first, u_second), axis=1)
    return b


@triton.jit
def with_exact_form(u, v):
    """What two channels add to b, from u and v = x^2 of each: x^2 / 6 below x = 0.5, from there on the exact form.

    That is log(sinh(x) / x) = x + log((1 - exp(-2 x)) / 2x). The logarithm and the division, the two costly operations,
    are done for both at once.
    """
    x = tl.sqrt(tl.maximum(u, HOT_U))
    y = tl.sqrt(tl.maximum(v, HOT_U))
    u_is_hot = u >= HOT_U
    v_is_hot = v >= HOT_U
    numerator = tl.where(u_is_hot, 1.0 - tl.exp(-2.0 * x), 1.0) * tl.where(v_is_hot, 1.0 - tl.exp(-2.0 * y), 1.0)
    denominator = tl.where(u_is_hot, 2.0 * x, 1.0) * tl.where(v_is_hot, 2.0 * y, 1.0)
    outside = tl.where(u_is_hot, x, u * (1.0 / 6.0)) + tl.where(v_is_hot, y, v * (1.0 / 6.0))
    return outside + tl.log(numerator / denominator)
