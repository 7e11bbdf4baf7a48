"""Rows times the Hadamard matrix of codecs/token/hadamard.py on tensor cores, exact to the last bits of a float32.

With H = [[A, A], [A, -A]] / sqrt(D), where every entry of A is 1 or -1, the halves of (x, y) H are (x + y) A and
(x - y) A, divided by sqrt(D). Signs are exact in bfloat16, and three bfloat16 numbers, with 8 significant bits each,
hold the 24 bits of a float32. Three bfloat16 products take half the time of the three TF32 products that a float32
product consists of.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def times_hadamard(first, second, HEAD_DIM: tl.constexpr, MATMUL: tl.constexpr):
    """Rows, given as halves float32 [N, D/2], times H: float32 [N, 2, D/2]; D is a power of two up to 512.

    MATMUL: the dtype of products, see `matmul_type`.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    SCALE: tl.constexpr = HEAD_DIM**-0.5
    halves = tl.permute(tl.join(first + second, first - second), (0, 2, 1))
    x = tl.reshape(halves, [2 * first.shape[0], HALF])
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    signs = sylvester_signs(HALF).to(MATMUL)
    total = tl.dot(low.to(MATMUL), signs)  # smallest terms first
    total = tl.dot(middle.to(MATMUL), signs, total)
    total = tl.dot(high.to(MATMUL), signs, total)
    return tl.reshape(total * SCALE, halves.shape)


@triton.jit
def sylvester_signs(SIZE: tl.constexpr):
    """A: 1, or -1 where row and column have an odd number of bits in common; float32 [SIZE, SIZE], SIZE up to 256."""
    number = tl.arange(0, SIZE)
    common = number[:, None] & number[None, :]
    common ^= common >> 4
    common ^= common >> 2
    common ^= common >> 1
    return 1.0 - 2.0 * (common & 1)
