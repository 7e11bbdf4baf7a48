"""The Jensen correction: how much attention mass quantized keys gain, and the bias that gives it back.

Derivation (after "Quantized Keys Steal Attention", arXiv 2605.26266). A stored key is k' = k + e, with rounding errors
e_c uniform on [-delta_c/2, delta_c/2], zero-mean and independent. With s = softmax scale (1/sqrt(D)):

    E[exp(s q.k')] = exp(s q.k) * prod_c E[exp(s q_c e_c)] = exp(s q.k + b)
    b = sum_c log(sinh(x_c) / x_c),     x_c = s q_c delta_c / 2          (exact)
    b ~ sum_c x_c^2 / 6 = s^2/24 sum_c q_c^2 delta_c^2                   (second order; always >= exact)

so every cached key weighs too much by the factor exp(b), and the unquantized current chunk loses that mass. Subtracting
b from the scores of cached keys undoes it in expectation. Step sizes are shared by a page's tokens, so b depends on
query and page only. A constant subtracted from all scores of a set of keys leaves that set's output unchanged and
lowers its log-sum-exp: **the correction is `lse -= b`**.

Assumptions, and where they break:
- errors are uniform and independent. Redundant tokens (a still background) round alike, and with few levels their
  common error has a mean of its own; the measured factor alpha (below) accounts for that.
- the mean over many keys and queries stands for the expectation: a query that attends to one cached key is not helped.
- keys are stored before rotary embedding, which rotates the error of a pair of channels by a position-dependent angle.
  b uses the average over angles: q_c^2 -> (q_c^2 + q_c'^2) / 2, exact (second order) if the pair shares its step size.
- keys read through a projection meet the query pulled back to their frame (rotary/projective.py): b takes that query,
  frame by frame.
- a whole chunk, or a run of its pages (`CacheSpec.correction_unit`), is corrected at once by the token-weighted mean of
  delta^2 over its pages; the spread inside a chunk is a second-order effect (tests/correction/test_formula.py compares
  with the per-key oracle, benchmarks/correction_unit.py chunks with runs of pages).
- codecs whose errors are not uniform rounding (a dropped direction *loses* mass) have no step size. In general, to
  second order, b = s^2/2 sum_c q_c^2 (Var k'_c - Var k_c), with its sign; the change of variance is measured at commit.
The quant error of keys stored as bf16 or fp32 is negligible; they are never corrected.

    off        b = 0
    formula    b from the step sizes
    variance   b from the change of variance
    measured   alpha * b, with b from the step sizes if there are any, else from the change of variance (alpha: fit.py)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.codecs.spec import CodecSpec
from pagedvid.rotary.tables import pair_mean_square

HOT_ENTRIES = 1 << 18
"""Entries of hot channels whose exact form is computed at once: temporaries stay within a few MiB."""
HOT_CHANNEL_X = 0.5
"""Channels in which any query reaches this x take the exact form; below it, the second order is off by x^2/30 < 1 %."""


def log_sinhc(x: Tensor) -> Tensor:
    """log(sinh(x) / x) for x >= 0, without overflow or cancellation; relative error below 1e-6 in float32.

    Below 1 the series x^2/6 - x^4/180 + x^6/2835 - x^8/37800 + x^10/467775 - ..., nested; above 1 a closed form.
    """
    u = x.clamp(max=1.0).square()
    series = u / 6 * (1 - u / 30 * (1 - u * (4 / 63) * (1 - u * (3 / 40) * (1 - u * (8 / 99) * (1 - u * 0.08437)))))
    large = x.clamp(min=1.0)
    closed = large + torch.log1p(-torch.exp(-2 * large)) - torch.log(2 * large)
    return torch.where(x < 1.0, series, closed)


def exact_bias(q_square: Tensor, square_step_size: Tensor, scale: float) -> Tensor:
    """b in its exact form. q_square [..., T, D], square_step_size [..., D] -> [..., T], natural log units."""
    x = (scale / 2) * (q_square * square_step_size.unsqueeze(-2)).sqrt()
    return log_sinhc(x).sum(-1)


def second_order_bias(q_square: Tensor, square_step_size: Tensor, scale: float) -> Tensor:
    """b to second order, one small matrix product. Shapes as in `exact_bias`."""
    return _second_order(q_square, square_step_size.unsqueeze(-2), scale).squeeze(-2)


def bias(q_square: Tensor, square_step_size: Tensor, scale: float) -> Tensor:
    """`biases` for one set of keys. Shapes as in `exact_bias`."""
    return biases(q_square, square_step_size.unsqueeze(-2), scale).squeeze(-2)


def biases(q_square: Tensor, square: Tensor, scale: float) -> Tensor:
    """b as it is used, of J sets of keys at once. q_square [..., T, D], square [..., J, D] -> [..., J, T].

    To second order where that is exact to 1 %, and in its exact form in outlier channels, where the second order is
    many times too large (x up to 192 was seen).

    q_square holds q_c^2, or `pair_mean_square(q)` for keys stored before rotary embedding. The two halves of that are
    the same, and one, [..., T, D/2], is enough. square holds step_size^2, or 12 (Var k' - Var k): gains of variance
    count as uniform errors of that variance, so that b is not too large in outlier channels; losses are negative and
    taken to second order.
    """
    by_column = square.unflatten(-1, (-1, q_square.shape[-1]))  # [..., J, 1 or 2, columns of q_square]
    # Decided for each leading index (range and head), so that no video depends on the others in its batch.
    is_hot = q_square.amax(-2)[..., None, None, :] * by_column * (scale**2 / 4) >= HOT_CHANNEL_X**2
    b = _second_order(q_square, by_column.masked_fill(is_hot, 0.0).sum(-2), scale)
    if is_hot.device.type == "cpu":
        return _add_hot_channels(b, q_square, by_column, is_hot, scale) if bool(is_hot.any()) else b
    # Finding the hot channels would wait for the device.
    hot_square = (by_column * is_hot).movedim((-3, -2), (0, 1)).flatten(0, 1)
    exact = torch.stack([exact_bias(q_square, each, scale) for each in hot_square], -2)
    return b + exact.unflatten(-2, (square.shape[-2], -1)).sum(-2)


def _second_order(q_square: Tensor, square: Tensor, scale: float) -> Tensor:
    return (square * (scale**2 / 24)) @ q_square.mT


def _add_hot_channels(b: Tensor, q_square: Tensor, by_column: Tensor, is_hot: Tensor, scale: float) -> Tensor:
    """Adds the exact form of each hot channel to b [..., J, T]; shapes as in `biases`.

    One by one: the sum of several would be rounded differently with each number of them, and so depend on the batch.
    """
    num_sets, num_rows = b.shape[-2:]
    rows = b.view(-1, num_rows)
    q_square = q_square.expand(*b.shape[:-2], -1, -1).reshape(-1, *q_square.shape[-2:])
    by_column = by_column.expand(*b.shape[:-1], -1, -1).reshape(len(rows), *by_column.shape[-2:])
    hot = is_hot.expand(*b.shape[:-1], -1, -1).reshape(by_column.shape).nonzero()
    for row, half, column in (part.unbind(1) for part in hot.split(max(1, HOT_ENTRIES // num_rows))):
        u = q_square[row // num_sets, :, column] * by_column[row, half, column].unsqueeze(-1)
        rows.index_add_(0, row, log_sinhc((scale / 2) * u.sqrt()))
    return b


class QuerySquares:
    """The squares of queries [..., T, D] that b takes, along different axes; each is computed once."""

    def __init__(self, q: Tensor) -> None:
        self._q = q
        self._made: dict[tuple[bool, int | None], Tensor] = {}

    def along(self, axes: Tensor | None, rotates: bool) -> Tensor:
        """Squared components along the rows of `axes` [D, D] (None: the channels), float32 [..., T, D].

        `rotates`: whether keys are rotated between storage and score, so that rotary pairs take their mean square.
        """
        key = (rotates, None if axes is None else id(axes))
        if key not in self._made:
            q = self._q.float() if axes is None else self._q.float() @ axes.T.to(self._q.device)
            self._made[key] = pair_mean_square(q) if rotates else q.square()
        return self._made[key]


@dataclass(frozen=True)
class QuantError:
    """The quant error of some stored keys. Leading axes [...] are those of the keys, such as ranges and KV heads."""

    square: Tensor
    """Mean of step_size^2, or 12 times the change of variance, which may be negative; [..., D]."""
    axes: Tensor | None = None
    """[D, D], whose rows are the directions of the components of `square`; None: the channels."""
    rotates: bool = False
    """Whether keys are rotated between storage and score."""
    alpha: Tensor | None = None
    """The measured factor on b, [...]; None: 1."""

    def bias(self, squares: QuerySquares, scale: float, rows: slice | Tensor = slice(None)) -> Tensor:
        """alpha * b, [..., T], of the queries in the leading `rows` of `squares`."""
        b = bias(squares.along(self.axes, self.rotates)[rows], self.square, scale)
        return b if self.alpha is None else self.alpha.unsqueeze(-1) * b

    def along(self, q_THD: Tensor) -> Tensor:
        """The queries' components along the axes, for kernels, which square them and average pairs themselves."""
        return q_THD if self.axes is None else q_THD.float() @ self.axes.T


@dataclass(frozen=True)
class BiasSource:
    """What b of the keys of one layer is computed from; see `bias_source`."""

    by_variance: bool
    """Whether to use the change of variance even if there are step sizes."""
    rotates: bool
    """Whether keys are rotated between storage and score."""

    def quant_error(
        self,
        square_step_size: Callable[[], Tensor | None],
        variance_change: Tensor | None,
        axes: Tensor | None,
        alpha: Tensor | None = None,
    ) -> QuantError | None:
        """From the mean of step_size^2 along `axes` if the codec has step sizes, else from the change of variance by
        channel, if that was measured. None if there is neither."""
        square = None if self.by_variance else square_step_size()
        if square is not None:
            return QuantError(square, axes, self.rotates, alpha)
        if variance_change is None:
            return None
        return QuantError(12 * variance_change.float(), None, self.rotates, alpha)


def bias_source(mode: str, codec: CodecSpec, *, has_rope: bool) -> BiasSource | None:
    """The source of b for keys stored by `codec` in a correction mode; None if they are not corrected.

    `has_rope`: whether the model rotates keys.
    """
    if mode == "off" or not codec.is_quantized:
        return None
    return BiasSource(mode == "variance", has_rope and not codec.stores_rotated)
