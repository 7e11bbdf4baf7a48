"""Token eviction as published for language models, on the chunks of a video: which tokens of a chunk each head keeps.

Everything is decided once, when a chunk is committed. A scorer ranks the chunk's tokens within each head; an allotment
says how many of them each head keeps. eviction_cache.py attends to what is left, in BF16.

own      the attention that the queries of the commit pass pay to the chunk (as SnapKV, arXiv 2404.14469)
ahead    the same with queries, and the keys of their own chunk, rotated one chunk ahead, where the next reader stands
random   a rank drawn at random: the control

uniform  every head keeps as many (`HeadCounts`)
AdaKV    the best scores over all heads of a layer, with a share that every head is sure of (arXiv 2407.11550)
LU-KV    counts for each head from a profile of what dropping costs; "LU-KV max" with the paper's utility (lu_kv.py)
dummy    heads that attend least to history keep none of it (dummy_heads.py)

Scores are means over queries and over the query heads of a KV head. Axes: H KV heads, Q queries, n tokens, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SCORERS = ("own", "ahead", "random")
BF16_BITS = 16
"""Of every number that is kept."""
ADAKV_SAFEGUARD = 0.2
"""Share of its equal part that a head is sure of; the published default."""


class Allotment(Protocol):
    """How many tokens each head keeps."""

    def keep(self, layer: int, scores_Hn: Tensor) -> Tensor:
        """bool [H, n]: which tokens of a chunk the heads of a layer keep."""
        ...


@dataclass(frozen=True)
class HeadCounts:
    """Fixed numbers of tokens, the same for every chunk."""

    counts_LH: tuple[tuple[int, ...], ...]

    def keep(self, layer: int, scores_Hn: Tensor) -> Tensor:
        """The best tokens of each head."""
        rank_Hn = scores_Hn.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return rank_Hn < torch.tensor(self.counts_LH[layer])[:, None]


@dataclass(frozen=True)
class AdaKV:
    """One number of tokens for all heads of a layer together."""

    mean_count: int
    """Tokens of a head, on average."""
    safeguard: float = ADAKV_SAFEGUARD

    def keep(self, layer: int, scores_Hn: Tensor) -> Tensor:
        """What every head is sure of, then the best tokens of all heads."""
        num_heads, num_tokens = scores_Hn.shape
        num_sure = min(self.mean_count, max(1, int(self.safeguard * self.mean_count)))
        sure = HeadCounts((*((),) * layer, (num_sure,) * num_heads)).keep(layer, scores_Hn)
        best = scores_Hn.masked_fill(sure, torch.inf).flatten().topk(num_heads * self.mean_count).indices
        return torch.zeros(num_heads * num_tokens, dtype=torch.bool).index_fill(0, best, True).view_as(scores_Hn)


def even_counts(num_layers: int, num_heads: int, count: int) -> HeadCounts:
    """As many tokens for every head."""
    return HeadCounts(((count,) * num_heads,) * num_layers)


def attention_paid(q_HQD: Tensor, keys_HnD: Tensor, others_HnD: Tensor, seen_Hn: Tensor | None = None) -> Tensor:
    """Mean share of its attention that a query pays to each of `keys`, [H, n], when it sees `others` besides.

    All are rotated. `seen_Hn`: which of the others there are; None: all.
    """
    scores_HQn = q_HQD @ torch.cat([keys_HnD, others_HnD], dim=1).mT * q_HQD.shape[-1] ** -0.5
    if seen_Hn is not None:
        scores_HQn[..., keys_HnD.shape[1] :].masked_fill_(~seen_Hn.unsqueeze(1), -torch.inf)
    return scores_HQn.softmax(-1)[..., : keys_HnD.shape[1]].mean(1)
