"""The quantizers of codecs/klt/levels.py and the scale bytes of codecs/klt/scales.py, for kernels.

Levels are symmetric, so everything is computed from magnitudes.
"""

from __future__ import annotations

from itertools import pairwise

import triton
import triton.language as tl

from pagedvid.codecs.klt import levels
from pagedvid.codecs.klt.levels import POSITIVE_LEVELS
from pagedvid.codecs.klt.scales import SCALE_ONE, SCALES_PER_OCTAVE, SMALLEST_SCALE
from pagedvid.codecs.triton_common import ROUND

_OF_2, _OF_4, _OF_8 = (POSITIVE_LEVELS[width] for width in (2, 4, 8))
STEP_SIZE_OF_8 = tl.constexpr(levels.UNIFORM_STEP_SIZE)
EDGE_OF_2 = tl.constexpr(sum(_OF_2) / 2)
EDGES_OF_4 = tl.constexpr(tuple((low + high) / 2 for low, high in pairwise(_OF_4)))
LEVEL_OF_1 = tl.constexpr(POSITIVE_LEVELS[1][0])
REACH_OF_2 = tl.constexpr(_OF_2[-1])
REACH_OF_4 = tl.constexpr(_OF_4[-1])
REACH_OF_8 = tl.constexpr(_OF_8[-1])
MISS_AT_ZERO = tl.constexpr(levels.MISS_AT_ZERO)
MISS_SLOPE = tl.constexpr(levels.MISS_SLOPE)
ONE = tl.constexpr(SCALE_ONE)
PER_OCTAVE = tl.constexpr(SCALES_PER_OCTAVE)
SMALLEST = tl.constexpr(SMALLEST_SCALE)


@triton.jit
def rounded(x):
    """x rounded to whole numbers, half to even; |x| < 2^22."""
    return (x + ROUND) - ROUND


@triton.jit
def nearest(x, WIDTH: tl.constexpr):
    """Indices of the nearest levels, 0 for the lowest, int32."""
    if WIDTH == 8:
        return rounded(tl.clamp(x / STEP_SIZE_OF_8 + 127.5, 0.0, 255.0)).to(tl.int32)
    magnitude = tl.abs(x)
    level = tl.zeros(x.shape, tl.int32)
    if WIDTH == 2:
        level += (magnitude > EDGE_OF_2).to(tl.int32)
    if WIDTH == 4:
        for edge in tl.static_range(7):
            level += (magnitude > EDGES_OF_4[edge]).to(tl.int32)
    HALF: tl.constexpr = 1 << (WIDTH - 1)
    return tl.where(x > 0, HALF + level, HALF - 1 - level)


@triton.jit
def likely_miss(x, width):
    """`levels.likely_miss_` up to the sign; `width` broadcasts against x, and width 0 is treated as 8."""
    magnitude = tl.abs(x)
    of_1 = magnitude - LEVEL_OF_1
    of_2 = tl.abs(magnitude - EDGE_OF_2) - (REACH_OF_2 - EDGE_OF_2)
    of_4 = tl.maximum(magnitude * MISS_SLOPE + MISS_AT_ZERO, magnitude - REACH_OF_4)
    level = rounded(tl.minimum(tl.maximum(magnitude / STEP_SIZE_OF_8 - 0.5, 0.0), 127.0))
    of_8 = (level + 0.5) * STEP_SIZE_OF_8 - magnitude
    return tl.where(width == 1, of_1, tl.where(width == 2, of_2, tl.where(width == 4, of_4, of_8)))


@triton.jit
def reach_of(width):
    """The largest level of each width."""
    wide = tl.where(width == 4, REACH_OF_4, REACH_OF_8)
    return tl.where(width == 1, LEVEL_OF_1, tl.where(width == 2, REACH_OF_2, wide))


@triton.jit
def scale_of(scale_byte):
    """The scales of scale bytes, which are given as float32."""
    return tl.exp2((scale_byte - ONE) / PER_OCTAVE)


@triton.jit
def scale_byte_of(scale):
    """Scale bytes before rounding, float32."""
    return tl.log2(tl.maximum(scale, SMALLEST)) * PER_OCTAVE + ONE
