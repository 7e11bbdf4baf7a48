"""Which queries of a chunk are looked at, so that no place of a frame is left out."""

from __future__ import annotations

import math

SAMPLED_QUERIES = 32
"""Queries of a forward and head whose attention is computed: at least as many, or all if there are fewer."""


def spread_over_frames(num_tokens: int, tokens_per_frame: int, num_samples: int, first: int = 0) -> range:
    """Tokens of a chunk at equal distances, at least `num_samples` if there are as many.

    The distance has no divisor in common with the tokens of a frame, so that successive samples go through all columns
    of the frame's grid, whatever its width. `first`: a number that differs from forward to forward; it shifts them.
    """
    distance = max(1, num_tokens // num_samples)
    while math.gcd(distance, tokens_per_frame) > 1:
        distance -= 1
    return range(first % distance, num_tokens, distance)
