"""KIVI (arXiv 2402.02750): keys per channel over groups of tokens, values per token over groups of channels.

Asymmetric, step and zero in fp16. The paper's group is 32. Groups count from the start of a chunk; the last may be
shorter. (KIVI keeps its newest tokens in full precision; here all cached chunks are quantized, as for everybody else.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from peers.stored import Stored, min_max


def kivi_keys(x_HnD: Tensor, bits: int, group: int) -> Stored:
    """`group` consecutive tokens of a channel share a step."""
    parts = [min_max(part, bits, dim=1) for part in x_HnD.split(group, dim=1)]
    values, step = (torch.cat([part[i] for part in parts], dim=1) for i in (0, 1))
    return Stored(values, bits + 32 * len(parts) / x_HnD.shape[1], step.square())


def kivi_values(x_HnD: Tensor, bits: int, group: int) -> Stored:
    """`group` channels of a token share a step."""
    values, step = min_max(x_HnD.unflatten(-1, (-1, group)), bits, dim=-1)
    return Stored(values.flatten(-2), bits + 32 / group, step.square().flatten(-2))
