"""Runs of neighbouring pages that are corrected together, where the correction's unit is the page.

b is defined per page. A partial per page would cost far more than it gives, as most pages of a chunk have nearly the
same step sizes; so a chunk is cut where b changes: at a cut of the scene, or where a frame is brighter than the others.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from pagedvid.attention.measure import StoredKeys, by_kv_head
from pagedvid.attention.rotation import Readers
from pagedvid.correction.formula import QuerySquares

TOLERANCE = 0.1
"""Largest difference of mean b, in nats, between the pages of a run, in any head: 10 % of the weight of a key."""


def mean_bias_of_pages(stored: StoredKeys, readers: Readers | None, scale: float) -> Tensor:
    """b of every page, mean over the sampled queries of the pass, float32 [P, H]; without queries, over queries whose
    components are all 1."""
    num_heads, _, head_dim = stored.exact_HnD.shape
    if readers is None:
        q_HQD = torch.ones(num_heads, 1, head_dim, dtype=torch.float32, device=stored.exact_HnD.device)
    else:
        q_HQD = by_kv_head(readers.reading_SHD, num_heads)
    error = stored.quant_error(stored.source, None, stored.part_tokens)
    assert error is not None  # the codec has step sizes
    return error.bias(QuerySquares(q_HQD), scale).mean(-1)


def page_runs(bias_PH: Tensor, page_tokens: int, num_tokens: int) -> tuple[int, ...]:
    """Tokens of each run: its pages' b differs from that of its first page by TOLERANCE at most."""
    bias = bias_PH.cpu().numpy()
    first, starts = 0, [0]
    for page in range(1, len(bias)):
        if abs(bias[page] - bias[first]).max() > TOLERANCE:
            first = page
            starts.append(page * page_tokens)
    return tuple(end - start for start, end in zip(starts, [*starts[1:], num_tokens], strict=True))


def cut_by_both(runs: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens of runs that end wherever either of these does: heads whose pages hold other numbers of tokens share runs,
    since a dense call reads all heads."""
    ends = sorted({*accumulate(runs), *accumulate(others)})
    return tuple(end - start for start, end in pairwise([0, *ends]))
