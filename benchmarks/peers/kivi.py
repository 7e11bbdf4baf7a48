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
    num_tokens = x_HnD.shape[1]
    values = torch.cat([part for part, _ in parts], dim=1)
    lengths = [min(group, num_tokens - i * group) for i in range(len(parts))]
    step_square_HD = sum(
        (step.square()[:, 0] * (length / num_tokens) for (_, step), length in zip(parts, lengths, strict=True)),
        start=torch.zeros(()),
    )
    return Stored(values, bits + 32 * len(parts) / num_tokens, step_square_HD)


def kivi_values(x_HnD: Tensor, bits: int, group: int) -> Stored:
    """`group` channels of a token share a step."""
    values, step = min_max(x_HnD.unflatten(-1, (-1, group)), bits, dim=-1)
    return Stored(values.flatten(-2), bits + 32 / group, step.square().mean(1).expand(-1, -1, group).flatten(-2))
