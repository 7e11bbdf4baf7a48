"""The Jensen correction: how much attention mass quantized keys steal, and the number that gives it back.

Derivation (after "Quantized Keys Steal Attention", arXiv 2605.26266). A stored key is k' = k + e, with rounding errors
e_c uniform on [-delta_c/2, delta_c/2], zero-mean and independent. With s = softmax scale (1/sqrt(D)):

    E[exp(s q.k')] = exp(s q.k) * prod_c E[exp(s q_c e_c)] = exp(s q.k + b)
    b = sum_c log(sinh(x_c) / x_c),     x_c = s q_c delta_c / 2          (exact)
    b ~ sum_c x_c^2 / 6 = s^2/24 sum_c q_c^2 delta_c^2                   (second order; always >= exact)

so every cached key looks heavier than it is by exp(b), and the unquantized current chunk loses that mass. Subtracting b
from the scores of cached keys undoes it in expectation. Steps are shared by a page's tokens, so b depends on query and
page only; a constant on all scores of a set of keys leaves that set's output unchanged and moves its log-sum-exp:
**the correction is `lse -= b`**.

Assumptions, and where they break:
- uniform, independent errors. Redundant tokens (a still background) round alike, and at few levels their common error
  has a mean of its own; the measured factor alpha (below) is for that.
- the mean over many keys and queries stands for the expectation: a query that looks at one cached key is not helped.
- keys are stored before rotary embedding, which turns the error of a pair of channels by a position-dependent angle.
  b uses the angle average: q_c^2 -> (q_c^2 + q_c'^2) / 2, exact (second order) when the pair shares its step.
- keys read through a projection meet the query pulled back to their frame (rotary/projective.py): b takes that query,
  frame by frame.
- a whole chunk is corrected at once by the token-weighted mean of delta^2 over its pages; the spread inside a chunk is
  a second-order effect (tests/correction/test_formula.py compares with the per-key oracle).
- codecs whose errors are not uniform rounding (a dropped direction *loses* mass) have no step. In general, to second
  order, b = s^2/2 sum_c q_c^2 (Var k'_c - Var k_c), with its sign; the change of variance is taken at commit.
Keys stored as bf16 or fp32 have no noise worth a correction and are never corrected.

    off        b = 0
    formula    b from the step sizes
    variance   b from the change of variance
    measured   alpha * b, b from the step sizes where there are any, else from the change of variance

What alpha must do. A reader gives a chunk the share P of its attention and finds the chunk's log Z moved by X = log
sum_i p_i exp(s q.e_i), with p_i its weights inside the chunk. X has mean b - v/2 and variance v = 2b sum_ij p_i p_j
rho_ij, where rho is the correlation of rounding errors: v is large where attention sits on few keys, or on keys that
round alike. With the chunk's scores lowered by c, the share moves by

    E[dP] = P(1-P) (E[X] - c + (1-2P)/2 Var X) = P(1-P) (b - v P - c),    so c = b - v P leaves the mass where it was.

Two wrong readings of c follow. The formula takes v P as nothing: it over-corrects where keys round alike and the chunk
holds much of the attention. The mean of X itself, b - v/2, which a fit to log Z finds, takes P as one half: it
under-corrects by v (1/2 - P) wherever one key decides and the chunk holds little. And the queries of the pass that made
the chunk find the very token they were made with, so that their v is larger than any reader's. Hence, at commit, when
keys are at hand both as they were and as they are stored, `fit_alpha` weighs masses:

- alpha is where the *mean share* of the sampled queries is what it was before rounding, so that v and P come in as they
  are. The share is that of a reader who sees two chunks: this one, and as its own current chunk the one that the
  queries come from, unquantized. That is a reader in its last denoise step. In its first, its own chunk is noise and
  says no more than any other, log-odds 0; the fit takes the middle (`reader_log_odds`). (With more cached chunks P is
  smaller if their errors are independent, and larger if they are the same.)
- queries stand where those of the next chunk will stand, and leave the token that they were made with out of the cached
  chunk, but not out of their current one.
- alpha differs from 1 only as far as different queries agree. The squared sum of what the formula leaves of each
  query's share, less every query's own square, is an unbiased estimate of the square that is no noise of the sample.

benchmarks/correction_worlds.py compares all this on content from still to unrelated from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pagedvid.rotary.tables import pair_mean_square

HOT_CHANNEL_X = 0.5
"""Channels in which some query reaches this x take the exact form: below it, second order is off by x^2/30 < 1 %."""
NEWTON_STEPS = 2
"""Of `fit_alpha`, from 1: to 0.01 where b is 1 or less, to 0.02 at b = 6."""
DECIDED = 10.0
"""Log-odds beyond which a share counts as none, or all, of the attention: smaller ones drown in rounding."""
SMALLEST = torch.finfo(torch.float32).tiny


def log_sinhc(x: Tensor) -> Tensor:
    """log(sinh(x) / x) for x >= 0, without overflow or cancellation; relative error below 1e-6 in float32.

    Below 1 the series x^2/6 - x^4/180 + x^6/2835 - x^8/37800 + x^10/467775 - ..., nested; above 1 a closed form.
    """
    u = x.clamp(max=1.0).square()
    series = u / 6 * (1 - u / 30 * (1 - u * (4 / 63) * (1 - u * (3 / 40) * (1 - u * (8 / 99) * (1 - u * 0.08437)))))
    large = x.clamp(min=1.0)
    closed = large + torch.log1p(-torch.exp(-2 * large)) - torch.log(2 * large)
    return torch.where(x < 1.0, series, closed)


def exact_bias(q_square: Tensor, step_square: Tensor, scale: float) -> Tensor:
    """b in its exact form. q_square [..., T, D], step_square [..., D] -> [..., T], natural log units."""
    x = (scale / 2) * (q_square * step_square.unsqueeze(-2)).sqrt()
    return log_sinhc(x).sum(-1)


def second_order_bias(q_square: Tensor, step_square: Tensor, scale: float) -> Tensor:
    """b to second order, one small matrix product. Shapes as `exact_bias`."""
    return (q_square @ step_square.unsqueeze(-1)).squeeze(-1) * (scale**2 / 24)


def bias(q_square: Tensor, step_square: Tensor, scale: float) -> Tensor:
    """b as it is used: second order where that is exact to 1 %, the exact form in outlier channels, where second order
    overshoots many times (x up to 192 was seen). Shapes as `exact_bias`.

    q_square holds q_c^2, or `pair_mean_square(q)` for keys stored before rotary embedding.
    """
    # Decided per leading index (range and head), so that no video depends on its neighbours in a batch.
    is_hot = q_square.amax(-2) * step_square * (scale**2 / 4) >= HOT_CHANNEL_X**2
    cold = second_order_bias(q_square, step_square.masked_fill(is_hot, 0.0), scale)
    if is_hot.device.type != "cpu":  # to look which columns are hot would wait for the device
        return cold + exact_bias(q_square, step_square * is_hot, scale)
    columns = is_hot.reshape(-1, is_hot.shape[-1]).any(0).nonzero().flatten()
    if columns.numel() == 0:
        return cold
    return cold + exact_bias(q_square[..., columns], (step_square * is_hot)[..., columns], scale)


def variance_bias(q_square: Tensor, variance_change: Tensor, scale: float) -> Tensor:
    """b from Var k' - Var k by channel; shapes as `exact_bias`, the change of variance in the place of step^2.

    Gains count as uniform noise of that variance (step^2 = 12 Var), so that outlier channels do not overshoot; losses
    are taken to second order.
    """
    gained = bias(q_square, 12 * variance_change.clamp(min=0), scale)
    return gained + second_order_bias(q_square, 12 * variance_change.clamp(max=0), scale)


class QuerySquares:
    """Squares of queries [..., T, D] as the noise of keys meets them; each kind is computed once."""

    def __init__(self, q: Tensor) -> None:
        self._q = q
        self._made: dict[tuple[bool, int | None], Tensor] = {}

    def along(self, axes: Tensor | None, turns: bool) -> Tensor:
        """Squared components, [..., T, D]: along `axes` [D, D] (rows; None: channels), means of rotary pairs if keys
        turn after they were stored."""
        key = (turns, None if axes is None else id(axes))
        if key not in self._made:
            q = self._q.float() if axes is None else self._q.float() @ axes.T.to(self._q.device)
            self._made[key] = pair_mean_square(q) if turns else q.square()
        return self._made[key]


@dataclass(frozen=True)
class KeyNoise:
    """What is known of the noise of some stored keys: squared steps, or else the change of variance, [..., D]."""

    step_square: Tensor | None
    variance_change: Tensor | None
    axes: Tensor | None = None
    """Directions of the steps, rows of [D, D]; None: channels. Changes of variance are by channel always."""
    turns: bool = False
    """Whether keys turn by rotary angles between storage and score."""

    def unflatten(self, shape: tuple[int, ...]) -> KeyNoise:
        """The same with the first axis split into `shape`."""
        step_square, variance_change = (
            None if x is None else x.unflatten(0, shape) for x in (self.step_square, self.variance_change)
        )
        return KeyNoise(step_square, variance_change, self.axes, self.turns)

    def bias(self, squares: QuerySquares, scale: float, rows: slice | Tensor = slice(None)) -> Tensor | float:
        """b of the queries' `rows`, [..., T]; 0 when nothing is known to correct."""
        if self.step_square is not None:
            return bias(squares.along(self.axes, self.turns)[rows], self.step_square, scale)
        if self.variance_change is not None:
            return variance_bias(squares.along(None, self.turns)[rows], self.variance_change, scale)
        return 0.0


def log_mass(q: Tensor, k: Tensor, scale: float, left_out: Tensor | None = None) -> Tensor:
    """log Z over the keys, natural log units. q [..., T, D], k [..., n, D] -> [..., T].

    `left_out`: one key for every query that does not count, int64 [T].
    """
    scores = (q.float() * scale) @ k.float().mT
    return leave_out(scores, left_out).logsumexp(-1)


def leave_out(scores: Tensor, left_out: Tensor | None) -> Tensor:
    """Scores [..., T, n] with -inf, in place, at one key for every query, int64 [T]."""
    if left_out is None:
        return scores
    return scores.scatter_(-1, left_out.unsqueeze(-1).expand(*scores.shape[:-1], 1), -torch.inf)


def log_mass_shift(q: Tensor, k: Tensor, k_stored: Tensor, scale: float) -> Tensor:
    """The true shift of log Z over the keys, natural log units. q [..., T, D]; k, k_stored [..., n, D] -> [..., T]."""
    return log_mass(q, k_stored, scale) - log_mass(q, k, scale)


def reader_log_odds(log_mass: Tensor, log_mass_here: Tensor) -> Tensor:
    """Log-odds of a chunk's share next to a reader's own chunk, whose log Z is `log_mass_here` when it is clean: the
    middle between that and noise, which holds as much as any other chunk."""
    return (log_mass - log_mass_here) / 2


def fit_alpha(log_odds: Tensor, mass_shift: Tensor, bias: Tensor) -> Tensor:
    """The factor alpha on b under which the chunk keeps its mean share of attention; see the module docstring.

    All [..., Q]: the log-odds of the share of unquantized keys, the true shift of their log Z, and b. Result [...].
    Where b is zero for every query there is nothing to scale; alpha is then 1, as it is for a single query.
    """
    # Queries whose keys lose mass (b < 0) are seen from the other side: from there it is a gain.
    side = 1 - 2 * (bias < 0).to(bias.dtype)
    before, b = side * log_odds.clamp(-DECIDED, DECIDED), bias.abs()
    after = before + side * mass_shift
    target, _ = mean_share(before)
    alpha = torch.ones_like(target)
    for _ in range(NEWTON_STEPS):
        share, response = mean_share(after - alpha.unsqueeze(-1) * b)
        slope = (response * b).sum(-1)
        alpha = alpha + torch.where(slope > 0, (share - target) / slope.clamp(min=SMALLEST), 0.0)
    return 1 + agreement(torch.sigmoid(after - b) - torch.sigmoid(before)) * (alpha - 1)


def mean_share(log_odds: Tensor) -> tuple[Tensor, Tensor]:
    """Log-odds of the mean of the shares that have `log_odds` [..., Q]: [...]; and its derivative by each, [..., Q]."""
    inside, outside = logsigmoid(log_odds), logsigmoid(-log_odds)
    log_inside, log_outside = (x.logsumexp(-1, keepdim=True) for x in (inside, outside))
    response = (inside + outside - log_inside - log_outside).exp() * log_odds.shape[-1]
    return (log_inside - log_outside).squeeze(-1), response


def agreement(x: Tensor) -> Tensor:
    """How much of the squared mean of x [..., Q] is not its own sampling noise, 0 to 1: the products of different
    entries next to those of all. 0 for a single entry."""
    num_entries = x.shape[-1]
    total, own = x.sum(-1).square(), x.square().sum(-1)
    return (total - own).clamp(min=0) / total.clamp(min=SMALLEST) * (num_entries / max(1, num_entries - 1))
