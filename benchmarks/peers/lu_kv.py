"""LU-KV (arXiv 2602.08585): how many tokens each head keeps, from an offline profile of what dropping them costs.

1. A token's utility is the attention that later queries pay to it, times the norm of its value, divided by the layer's
   mean norm. The later queries are those of the denoise steps of one chunk that reads five others.
2. Tokens are ordered as the deployed scorer will order them, so that a curve shows what this scorer really loses: the
   utility of all tokens that are dropped, over the number that is kept. Curves are means over chunks and prompts.
3. The lower convex hull of each curve; one global number of tokens goes where the hulls fall fastest.

The paper takes the largest attention of any later query, of some tens in its profile (`largest_utilities`). A chunk of
a video is read by thousands, and the mean over them (`mean_utilities`) serves it better. Other differences: norms are
of values, not of values after the output projection, which the cache does not know; curves are averaged over prompts,
not the budgets that follow from each.

Axes: L layers; C chunks; H heads; n tokens of a chunk; m = 0 to n of them; N tokens of all chunks. Samples have others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lib.samples import Sample
from peers.eviction import HeadCounts, attention_paid

Utilities = Callable[[Sample], Tensor]
FEWEST_TOKENS = 1
"""What every head keeps of a chunk, as in the published code."""


def loss_curves(samples: Sequence[Sample], scorer: str, utilities: Utilities) -> np.ndarray:
    """Utility lost when a head keeps the best m tokens of a chunk, [L, H, n + 1] for m = 0 to n."""
    num_layers = 1 + max(sample.layer for sample in samples)
    by_layer = [
        torch.stack([_lost(sample, scorer, utilities(sample)) for sample in samples if sample.layer == layer]).mean(0)
        for layer in range(num_layers)
    ]
    return torch.stack(by_layer).numpy()


def _lost(sample: Sample, scorer: str, utilities_CHn: Tensor) -> Tensor:
    """[H, n + 1], mean over the chunks of a sample."""
    curves = []
    for chunk, utility_Hn in enumerate(utilities_CHn):
        order_Hn = chunk_scores(sample, chunk, scorer).argsort(dim=-1, descending=True, stable=True)
        kept = utility_Hn.gather(1, order_Hn).cumsum(-1)
        curves.append(kept[:, -1:] - torch.nn.functional.pad(kept, (1, 0)))
    return torch.stack(curves).mean(0)


def mean_utilities(sample: Sample) -> Tensor:
    """By the mean attention of later queries, [C, H, n]."""
    return _weighted(sample, later_attention(sample).mean((0, 2)))


def largest_utilities(sample: Sample) -> Tensor:
    """By the largest attention of any later query, [C, H, n]."""
    return _weighted(sample, later_attention(sample).amax((0, 2)))


def _weighted(sample: Sample, paid_HN: Tensor) -> Tensor:
    """Attention to stored tokens times the relative norms of their values, [C, H, n]."""
    norm_CHn = sample.v_CHTD.norm(dim=-1)
    num_chunks, _, num_tokens = norm_CHn.shape
    paid_HCn = paid_HN[:, : num_chunks * num_tokens].unflatten(1, (num_chunks, num_tokens))
    return paid_HCn.transpose(0, 1) * norm_CHn / norm_CHn.mean()


def later_attention(sample: Sample) -> Tensor:
    """Attention in the forwards that read all chunks, [forwards, H, queries, N + n]; their own tokens are last."""
    keys = [sample.rotated(k_HTD, chunk) for chunk, k_HTD in enumerate(sample.k_CHTD)]
    weights = []
    for q_HTD, k_HTD in zip(sample.q_LHTD, sample.current_k_LHTD, strict=True):
        all_keys_HND = torch.cat([*keys, sample.rotated(k_HTD, -1)], dim=1)
        weights.append((sample.rotated(q_HTD, -1) @ all_keys_HND.mT * q_HTD.shape[-1] ** -0.5).softmax(-1))
    return torch.stack(weights)


def chunk_scores(sample: Sample, chunk: int, scorer: str) -> Tensor:
    """What "own" or "ahead" says in the commit pass of a chunk, [H, n]. Raises ValueError for other scorers."""
    if scorer not in ("own", "ahead"):
        raise ValueError(f"scorer is {scorer!r}; only 'own' and 'ahead' have a profile")
    q_HTD, k_HTD = sample.commit_q_CHTD[chunk], sample.k_CHTD[chunk]
    others = [k_HTD[:, :0], *(sample.rotated(k, before) for before, k in enumerate(sample.k_CHTD[:chunk]))]
    if scorer == "ahead":
        others.append(sample.rotated(k_HTD, chunk + 1))
    q_HTD = sample.rotated(q_HTD, chunk + (scorer == "ahead"))
    return attention_paid(q_HTD, sample.rotated(k_HTD, chunk), torch.cat(others, dim=1))


def spend(curves_LHm: np.ndarray, mean_count: int) -> HeadCounts:
    """The counts of all heads whose mean is `mean_count`."""
    num_layers, num_heads, _ = curves_LHm.shape
    gains_LHn = np.stack([[hull_gains(curve) for curve in heads] for heads in curves_LHm])
    gains_LHn[..., :FEWEST_TOKENS] = np.inf
    best = np.argsort(-gains_LHn, axis=None, kind="stable")[: num_layers * num_heads * mean_count]
    chosen = np.zeros(gains_LHn.size, dtype=bool)
    chosen[best] = True
    counts_LH = chosen.reshape(gains_LHn.shape).sum(-1)
    return HeadCounts(tuple(tuple(map(int, counts_H)) for counts_H in counts_LH))


def hull_gains(curve_m: np.ndarray) -> np.ndarray:
    """How much the lower convex hull of a curve falls with each further token, [n]: never more than with the last."""
    corners = [0]
    for m in range(1, len(curve_m)):
        while len(corners) > 1 and _slope(curve_m, corners[-1], m) <= _slope(curve_m, corners[-2], corners[-1]):
            corners.pop()
        corners.append(m)
    return -np.diff(np.interp(np.arange(len(curve_m)), corners, curve_m[corners]))


def _slope(curve_m: np.ndarray, first: int, last: int) -> float:
    return float((curve_m[last] - curve_m[first]) / (last - first))
