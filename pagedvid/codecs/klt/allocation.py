"""How many bits each coefficient gets: reverse water-filling, with widths that divide a byte.

Coefficients are ranked by importance (their variance times how much their errors matter). The heads of a layer share
one `segments` table: the first ranks get 8 bits each, the next 4, then 2, 1, and the rest none. So one record layout
serves all heads, while each head ranks its own coefficients.
"""

from __future__ import annotations

import heapq

from torch import Tensor

from pagedvid.codecs.packing import WIDTHS

DISTORTION = {0: 1.0, 1: 0.3634, 2: 0.1175, 4: 0.00950, 8: 1.3e-4}
"""Mean square error for a unit Gaussian by width: Lloyd-Max below 8 bits (Max 1960, table I), at 8 bits uniform levels
up to 5 sigma."""
GRANULE = 8
"""Coefficients of a width come in multiples of 8, so that any number of blocks fills whole bytes."""


def choose_segments(spectrum_N: Tensor, bits_per_block: int) -> dict[int, int]:
    """The number of coefficients of each width, {8: n8, 4: n4, 2: n2, 1: n1}, that keeps the distortion small.

    spectrum [N]: importance by rank, falling. sum(width * count) is at most bits_per_block, and less than GRANULE bits
    below it unless no wider width fits any more. Greedy by the distortion saved per bit, which is optimal where the
    distortion is a convex function of the bits.
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
        if -gain > stale:  # fewer bits are left than when this offer was made
            heapq.heappush(offers, (-gain, number))
            continue
        left -= wider - widths[number]
        widths[number] = wider
        heapq.heappush(offers, (-_best_gain(wider, granules[number], left)[0], number))
    return {width: GRANULE * widths.count(width) for width in WIDTHS}


def _best_gain(width: int, variance: float, bits_left: int) -> tuple[float, int]:
    """(distortion saved per bit, width) of the best wider width that still fits; (0, width) if there is none."""
    options = [
        (variance * (DISTORTION[width] - DISTORTION[wider]) / (wider - width), wider)
        for wider in WIDTHS
        if 0 < wider - width <= bits_left
    ]
    return max(options, default=(0.0, width))
