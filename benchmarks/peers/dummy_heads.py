"""Heads that attend little to history keep none of it, after Dummy Forcing (arXiv 2601.20499).

As published, a head's need of history is the larger of its shares of all heads' attention to the first chunk and to the
later ones; the heads with the least are "dummies", which see one frame of the past; others see the first chunk or the
recent ones. Here, at a given number of bytes: heads by falling need keep whole chunks until the bytes are spent, the
next head keeps as many of the best tokens as still fit, and dummies keep nothing: one chunk each would take more bytes
than there are. Needs are measured offline on other prompts (the published code: on the video's first chunks).

Axes: L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lib.samples import Sample
from peers.eviction import HeadCounts
from peers.lu_kv import later_attention


def needs(samples: Sequence[Sample]) -> np.ndarray:
    """How much each head needs history, [L, H]."""
    num_layers = 1 + max(sample.layer for sample in samples)
    first, later = np.zeros((2, num_layers, samples[0].k_CHTD.shape[1]))
    for sample in samples:
        paid_HN = later_attention(sample).mean((0, 2)).numpy()
        num_chunks, _, num_tokens, _ = sample.k_CHTD.shape
        first[sample.layer] += paid_HN[:, :num_tokens].sum(-1)
        later[sample.layer] += paid_HN[:, num_tokens : num_chunks * num_tokens].sum(-1)
    return np.maximum(first / first.sum(), later / later.sum())


def whole_heads(needs_LH: np.ndarray, num_tokens: int, mean_count: int) -> HeadCounts:
    """Whole chunks of `num_tokens` for the neediest heads, with `mean_count` tokens per head on average."""
    left = mean_count * needs_LH.size
    counts = np.zeros(needs_LH.size, dtype=int)
    for head in np.argsort(-needs_LH, axis=None, kind="stable"):
        counts[head] = min(num_tokens, left)
        left -= counts[head]
    return HeadCounts(tuple(tuple(map(int, counts_H)) for counts_H in counts.reshape(needs_LH.shape)))
