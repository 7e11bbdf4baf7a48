"""alpha: the measured factor on b, fitted at commit, when both the exact keys and the stored ones are at hand.

What alpha must do. A reader gives a chunk the share P of its attention. Quantization changes the chunk's log Z by X =
log sum_i p_i exp(s q.e_i), where p_i are the reader's weights inside the chunk. X has mean b - v/2 and variance v =
2b sum_ij p_i p_j rho_ij, where rho is the correlation of rounding errors: v is large where attention is on few keys, or
on keys that round alike. If c is subtracted from the chunk's scores, the share changes by

    E[dP] = P(1-P) (E[X] - c + (1-2P)/2 Var X) = P(1-P) (b - v P - c),    so c = b - v P keeps the mass unchanged.

Two simpler choices of c are therefore wrong. The formula's c = b neglects v P: it over-corrects where keys round alike
and the chunk has much of the attention. The mean of X, c = b - v/2, which a fit to log Z finds, amounts to P = 1/2: it
under-corrects by v (1/2 - P) where one key decides and the chunk has little of the attention. Besides, the queries of
the pass that made the chunk find in it the very token that they were made with, so that their v is larger than that of
any reader. Hence `fit_alpha` balances attention mass:

- alpha is the factor at which the *mean share* of the sampled queries is what it was before rounding; this accounts for
  v and P. The share is that of a reader who sees two chunks: this one, and the unquantized chunk of the queries as its
  own current chunk, as for a reader in its last denoise step. In its first, its own chunk is noise and holds as much
  as any other, log-odds 0; the fit takes the middle (`reader_log_odds`). (With more cached chunks P is smaller if their
  errors are independent, and larger if they are the same.)
- queries are rotated to the positions of the next chunk; each leaves out the token that it was made with from the
  cached chunk, but not from its current one.
- alpha differs from 1 only as far as different queries agree. The square of the summed share errors that the formula
  leaves, less the sum of their squares, is an unbiased estimate of the part of the square that is not sampling error.

benchmarks/correction_worlds.py compares these choices on content from still to unrelated from frame to frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

NEWTON_ITERATIONS = 2
"""Iterations of `fit_alpha`, starting at 1: accurate to 0.01 where b is 1 or less, to 0.02 at b = 6."""
DECIDED = 10.0
"""Log-odds beyond which a share counts as none or all of the attention, since its changes are lost in rounding."""
SMALLEST = torch.finfo(torch.float32).tiny


def log_mass(q: Tensor, k: Tensor, scale: float, left_out: Tensor | None = None) -> Tensor:
    """log Z over the keys, natural log units. q [..., T, D], k [..., n, D] -> float32 [..., T].

    `left_out`: the index of one key to leave out for each query, int64 [T].
    """
    scores = (q.float() * scale) @ k.float().mT
    return leave_out(scores, left_out).logsumexp(-1)


def leave_out(scores: Tensor, left_out: Tensor | None) -> Tensor:
    """Sets the scores [..., T, n] of one key per query, `left_out` int64 [T], to -inf, in place."""
    if left_out is None:
        return scores
    return scores.scatter_(-1, left_out.unsqueeze(-1).expand(*scores.shape[:-1], 1), -torch.inf)


def log_mass_shift(q: Tensor, k: Tensor, k_stored: Tensor, scale: float) -> Tensor:
    """The true change of log Z over the keys, natural log units. q [..., T, D]; k, k_stored [..., n, D] -> [..., T]."""
    return log_mass(q, k_stored, scale) - log_mass(q, k, scale)


def reader_log_odds(log_mass: Tensor, log_mass_here: Tensor) -> Tensor:
    """Log-odds of a chunk's share against a reader's own chunk, whose log Z is `log_mass_here` once it is clean.

    The middle between that and the first denoise step, when the own chunk is noise and holds as much as any other.
    """
    return (log_mass - log_mass_here) / 2


def fit_alpha(log_odds: Tensor, mass_shift: Tensor, bias: Tensor) -> Tensor:
    """The factor alpha on b at which the chunk keeps its mean share of attention; see the module docstring.

    All [..., Q]: the log-odds of the share of unquantized keys, the true change of their log Z, and b. Returns [...].
    alpha is 1 where b is zero for every query, so that there is nothing to scale, and for a single query.
    """
    # Where keys lose mass (b < 0), the share of all other keys, which gains, is fitted instead.
    side = 1 - 2 * (bias < 0).to(bias.dtype)
    before, b = side * log_odds.clamp(-DECIDED, DECIDED), bias.abs()
    after = before + side * mass_shift
    target, _ = mean_share(before)
    alpha = torch.ones_like(target)
    for _ in range(NEWTON_ITERATIONS):
        share, response = mean_share(after - alpha.unsqueeze(-1) * b)
        slope = (response * b).sum(-1)
        alpha = alpha + torch.where(slope > 0, (share - target) / slope.clamp(min=SMALLEST), 0.0)
    return 1 + agreement(torch.sigmoid(after - b) - torch.sigmoid(before)) * (alpha - 1)


def mean_share(log_odds: Tensor) -> tuple[Tensor, Tensor]:
    """(log-odds [...] of the mean of shares, its derivatives by their log-odds [..., Q]) from `log_odds` [..., Q]."""
    inside, outside = logsigmoid(log_odds), logsigmoid(-log_odds)
    log_inside, log_outside = (x.logsumexp(-1, keepdim=True) for x in (inside, outside))
    response = (inside + outside - log_inside - log_outside).exp() * log_odds.shape[-1]
    return (log_inside - log_outside).squeeze(-1), response


def agreement(x: Tensor) -> Tensor:
    """The part of the squared mean of x [..., Q] that is not sampling error, from 0 to 1; 0 for a single entry.

    Estimated from the products of different entries as a share of the products of all.
    """
    num_entries = x.shape[-1]
    total, own = x.sum(-1).square(), x.square().sum(-1)
    return (total - own).clamp(min=0) / total.clamp(min=SMALLEST) * (num_entries / max(1, num_entries - 1))
