"""Runs of neighbouring pages that are corrected together, where the correction's unit is the page.

b is defined per page. A partial per page would cost far more than it gives, as most pages of a chunk have nearly the
same step sizes; so a chunk is cut where b changes: at a cut of the scene, or where a frame is brighter than the others.

Axes: H KV heads, P pages of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagedvid.attention.measure import StoredKeys, by_kv_head
from pagedvid.attention.rotation import Readers
from pagedvid.correction.formula import QuerySquares

TOLERANCE = 0.1
"""Largest difference of mean b, in nats, between any two pages of a run, in any head: 10 % of the weight of a key. So b
of a run, from its mean of step_size^2, differs from that of each of its pages by no more, to second order."""


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


def runs_of_layers(noted: Sequence[tuple[int, int, Tensor]], num_tokens: int) -> dict[int, tuple[int, ...]]:
    """`page_runs` of a chunk by layer, from (layer, tokens of a page, mean b of every page [P, H]) of heads that are
    stored alike; all heads of a layer have the same runs. Waits for the device once."""
    if not noted:
        return {}
    together = torch.cat([bias_PH.flatten() for *_, bias_PH in noted]).cpu()
    parts = together.split([bias_PH.numel() for *_, bias_PH in noted])
    runs: dict[int, tuple[int, ...]] = {}
    for (layer, page_tokens, bias_PH), part in zip(noted, parts, strict=True):
        found = page_runs(part.view(bias_PH.shape).numpy(), page_tokens, num_tokens)
        runs[layer] = cut_by_both(runs[layer], found) if layer in runs else found
    return runs


def page_runs(bias_PH: NDArray[np.float32], page_tokens: int, num_tokens: int) -> tuple[int, ...]:
    """Tokens of each run, from the mean b of every page [P, H]. A run ends before the page with which b would differ by
    more than TOLERANCE in some head."""
    starts, least, most = [0], bias_PH[0], bias_PH[0]
    for page, bias_H in enumerate(bias_PH):
        least, most = np.minimum(least, bias_H), np.maximum(most, bias_H)
        if (most - least).max() > TOLERANCE:
            least = most = bias_H
            starts.append(page * page_tokens)
    return tuple(end - start for start, end in zip(starts, [*starts[1:], num_tokens], strict=True))


def cut_by_both(runs: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens of runs that end wherever either of these does."""
    ends = sorted({*accumulate(runs), *accumulate(others)})
    return tuple(end - start for start, end in pairwise([0, *ends]))
