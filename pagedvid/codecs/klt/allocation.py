"""How many bits each coefficient gets: reverse water-filling, with the widths that share bytes neatly.

Coefficients are ranked by importance (variance times how much its error matters). Heads of all layers share one
`segments` table: so many of the highest ranks get 8 bits, the next 4, then 2, 1, and the rest none. So one record
layout serves every head, while each head decides what its ranks are.
"""

from __future__ import annotations

import heapq

from torch import Tensor

from pagedvid.codecs.klt.fields import WIDTHS

DISTORTION = {0: 1.0, 1: 0.3634, 2: 0.1175, 4: 0.00950, 8: 1.3e-4}
"""Mean square error of a unit Gaussian: Lloyd-Max below 8 bits (Max 1960, table I), uniform levels to 5 sigma at 8."""
GRANULE = 8
"""Coefficients of a width come in eights, so that any number of blocks fills whole bytes."""


def choose_segments(spectrum_N: Tensor, bits_per_block: int) -> dict[int, int]:
    """Coefficients by width that minimise the distortion, {8: n8, 4: n4, 2: n2, 1: n1}.

    spectrum [N]: importance by rank, falling. sum(width * count) <= bits_per_block, and misses it by less than GRANULE
    bits unless only steps from 2 or 4 bits up are left. Greedy on the distortion saved per bit: optimal on a convex
    curve.
    """
    usable = len(spectrum_N) // GRANULE * GRANULE
    granules = spectrum_N[:usable].unflatten(0, (-1, GRANULE)).sum(-1).tolist()
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
