"""How many bits each coefficient gets: reverse water-filling, with the widths that share bytes neatly.

Coefficients are ranked by importance (variance times how much its error matters). Heads of all layers share one
`segments` table: so many of the highest ranks get 8 bits, the next 4, then 2, 1, and the rest none. So one record
layout serves every head, while each head decides what its ranks are.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import torch
from torch import Tensor

from pagedvid.quant.fields import WIDTHS

DISTORTION = {0: 1.0, 1: 0.3634, 2: 0.1175, 4: 0.00950, 8: 1.3e-4}
"""Mean square error of a unit Gaussian: Lloyd-Max below 8 bits (Max 1960, table I), uniform levels to 5 sigma at 8."""
GRANULE = 8
"""Coefficients of a width come in eights, so that any number of blocks fills whole bytes."""


def choose_segments(importance_HN: Tensor, bits_per_block: int) -> dict[int, int]:
    """Coefficients by width that minimise the mean distortion over heads, {8: n8, 4: n4, 2: n2, 1: n1}.

    importance [heads, N]: any order. sum(width * count) <= bits_per_block, and misses it by less than GRANULE bits
    unless only steps from 2 or 4 bits up are left. Greedy on the distortion saved per bit: optimal on a convex curve.
    """
    share_HN = importance_HN / importance_HN.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    curve = share_HN.sort(dim=-1, descending=True).values.mean(0)
    usable = len(curve) // GRANULE * GRANULE
    granules = curve[:usable].unflatten(0, (-1, GRANULE)).sum(-1).tolist()
    widths, left = [0] * len(granules), bits_per_block // GRANULE
    offers = [(-_best_gain(0, value, left)[0], number) for number, value in enumerate(granules)]
    heapq.heapify(offers)
    while offers and left:
        stale, number = heapq.heappop(offers)
        gain, wider = _best_gain(widths[number], granules[number], left)
        if wider == widths[number]:
            continue
        if -gain > stale:  # fewer bits are left than when the offer was made
            heapq.heappush(offers, (-gain, number))
            continue
        left -= wider - widths[number]
        widths[number] = wider
        heapq.heappush(offers, (-_best_gain(wider, granules[number], left)[0], number))
    return {width: GRANULE * widths.count(width) for width in WIDTHS}


def _best_gain(width: int, variance: float, bits_left: int) -> tuple[float, int]:
    """(distortion saved per bit, width) of the best step up that still fits; (0, width) when there is none."""
    options = [
        (variance * (DISTORTION[width] - DISTORTION[wider]) / (wider - width), wider)
        for wider in WIDTHS
        if 0 < wider - width <= bits_left
    ]
    return max(options, default=(0.0, width))


def widths_by_rank(segments: Mapping[int, int], num_coefficients: int) -> Tensor:
    """Bits of each rank, int64 [N], falling."""
    widths = [width for width in WIDTHS for _ in range(segments[width])]
    return torch.tensor(widths + [0] * (num_coefficients - len(widths)))


def lloyd_max(values: Tensor, num_levels: int, num_rounds: int = 100) -> Tensor:
    """Levels [num_levels], ascending, that locally minimise the mean square error of `values` [n] (Lloyd 1957)."""
    levels = torch.quantile(values, (torch.arange(num_levels) + 0.5) / num_levels)
    for _ in range(num_rounds):
        cell = torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)
        count = torch.bincount(cell, minlength=num_levels)
        total = torch.zeros(num_levels).index_add_(0, cell, values)
        levels = torch.where(count > 0, total / count.clamp(min=1), levels)
    return levels
