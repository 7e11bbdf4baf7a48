"""Quantizers with uniform levels and a step size and zero point per group: RTN, QuaRot and KIVI.

Axes: H heads, n tokens, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.codecs.token.hadamard import hadamard_matrix
from peers import Stored

RTN_METADATA_BITS = 24
KIVI_METADATA_BITS = 32


def rtn(x_HnD: Tensor, bits: int, group: int) -> Stored:
    """Round to nearest: `group` channels of a token share a step size. Base quantizer of arXiv 2605.26266, section 4.

    `group` must divide D. The paper counts 24 bits per group, 16 for the step size and 8 for the zero point. Both are
    fp16 here; the paper's count is kept.
    """
    values, step_size = min_max(x_HnD.unflatten(-1, (-1, group)), bits, dim=-1)
    return Stored(values.flatten(-2), bits + RTN_METADATA_BITS / group, step_size.square().flatten(-2))


def quarot(x_HnD: Tensor, bits: int, group: int) -> Stored:
    """QuaRot (arXiv 2404.00456) as a KV-cache quantizer: a Hadamard rotation over the head dimension, then `rtn`.

    Step sizes are those of the rotated channels.
    """
    matrix = hadamard_matrix(x_HnD.shape[-1])
    stored = rtn(x_HnD @ matrix, bits, group)
    return Stored(stored.values_HnD @ matrix, stored.bits, stored.square_step_size_HnD, axes_DD=matrix)


def kivi_keys(x_HnD: Tensor, bits: int, group: int) -> Stored:
    """Keys of KIVI (arXiv 2402.02750): `group` consecutive tokens of a channel share a step size.

    The paper's group is 32. Groups start with the chunk; the last one may be shorter. KIVI keeps its newest tokens in
    full precision; here all cached chunks are quantized, as for every other quantizer.
    """
    parts = [min_max(part, bits, dim=1) for part in x_HnD.split(group, dim=1)]
    values, step_size = (torch.cat([part[i] for part in parts], dim=1) for i in (0, 1))
    return Stored(values, bits + KIVI_METADATA_BITS * len(parts) / x_HnD.shape[1], step_size.square())


def kivi_values(x_HnD: Tensor, bits: int, group: int) -> Stored:
    """Values of KIVI: `group` channels of a token share a step size."""
    values, step_size = min_max(x_HnD.unflatten(-1, (-1, group)), bits, dim=-1)
    return Stored(values.flatten(-2), bits + KIVI_METADATA_BITS / group, step_size.square().flatten(-2))


def min_max(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor]:
    """(rounded values, step sizes), both in the shape of x: asymmetric levels from minimum to maximum over `dim`.

    Step size and zero point are rounded to fp16.
    """
    low, high = x.amin(dim, keepdim=True).half().float(), x.amax(dim, keepdim=True)
    step_size = ((high - low) / ((1 << bits) - 1)).half().float()
    codes = ((x - low) / step_size.where(step_size > 0, 1.0)).round().clamp(0, (1 << bits) - 1)
    return low + step_size * codes, step_size.expand_as(x)
