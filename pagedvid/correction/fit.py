"""alpha: the measured factor on b, fitted at commit, when keys are at hand both as they were and as they are stored.

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

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

NEWTON_STEPS = 2
"""Of `fit_alpha`, from 1: to 0.01 where b is 1 or less, to 0.02 at b = 6."""
DECIDED = 10.0
"""Log-odds beyond which a share counts as none, or all, of the attention: smaller ones drown in rounding."""
SMALLEST = torch.finfo(torch.float32).tiny


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
