"""Round to nearest, per token, asymmetric, groups of channels: the base quantizer of arXiv 2605.26266, section 4.

The paper counts 24 bits per group (16 for the step, 8 for the zero); both are fp16 here and the paper's count is kept.
"""

from __future__ import annotations

from torch import Tensor

from peers.stored import Stored, min_max

METADATA_BITS = 24


def rtn(x_HnD: Tensor, bits: int, group: int) -> Stored:
    """`group` channels of a token share a step; it must divide D."""
    values, step = min_max(x_HnD.unflatten(-1, (-1, group)), bits, dim=-1)
    return Stored(values.flatten(-2), bits + METADATA_BITS / group, step.square().flatten(-2))
