"""What the ranges of a step see besides their history: the step's own keys, and context such as that of a text.

Made once for all layers and denoise steps of the same chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.attention.dense.ragged import Ragged
from pagedvid.cache.plan import StepPlan

Context = Sequence[tuple[Tensor, Tensor] | None]
"""For each range of a step its context keys and values, [n, Hkv, D] each, or None; empty when no range has any."""


@dataclass(frozen=True)
class Sources:
    """The dense sources of a step."""

    current: Ragged
    current_keys: Tensor | None
    """Packed tokens of every range's current keys; None: each range sees only itself."""
    context: Ragged | None

    @staticmethod
    def of(plan: StepPlan, context_tokens: Sequence[int], device: torch.device) -> Sources:
        """`context_tokens`: number of context keys of each range; empty when no range has any."""
        lengths = [range_.num_tokens for range_ in plan.ranges]
        seen = [sum(lengths[number] for number in range_.current) for range_ in plan.ranges]
        context = Ragged.of(lengths, context_tokens, device) if any(context_tokens) else None
        return Sources(Ragged.of(lengths, seen, device), _current_keys(plan, device), context)


def context_keys(context: Context) -> tuple[Tensor, Tensor]:
    """Keys and values of all contexts, one after the other."""
    pairs = [pair for pair in context if pair is not None and len(pair[0])]
    return torch.cat([k for k, _ in pairs]), torch.cat([v for _, v in pairs])


def _current_keys(plan: StepPlan, device: torch.device) -> Tensor | None:
    """Packed tokens of the current keys that each range sees, range by range; None: each sees only itself."""
    if all(len(range_.current) == 1 for range_ in plan.ranges):
        return None
    seen = [plan.ranges[number] for range_ in plan.ranges for number in range_.current]
    return torch.cat([torch.arange(range_.start, range_.stop) for range_ in seen]).to(device)
