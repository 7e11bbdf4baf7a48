"""Times of MAGI-1's denoise steps, from 0 (noise) to 1 (clean), and the lengths of steps for distilled networks."""

from __future__ import annotations

from functools import lru_cache

import torch

from pagedvid.errors import ConfigError
from pagedvid.models.magi1.spec import SamplingConfig

SHORTCUT_STEPS = 12
SHIFT = 1 / 3
"""How far times crowd towards noise."""


@lru_cache
def times(num_steps: int, shortcut_mode: str = "8,16,16") -> tuple[float, ...]:
    """num_steps + 1 rising times, from 0 to 1: v / 3 / (1 - 2 v / 3) of the squares v of even steps.

    Values are float32 numbers (as the published sampler computes them), given as Python floats. With 12 steps the even
    steps are those of sixteen, less one in every quarter.
    """
    if num_steps == SHORTCUT_STEPS:
        base = (
            torch.tensor([0.0, 2.0, 3.0] if shortcut_mode == "8,16,16" else [0.0, 1.0, 2.0], dtype=torch.float32) / 16
        )
        even = torch.cat([base + quarter / 4 for quarter in range(5)])[: num_steps + 1]
    else:
        even = torch.arange(num_steps + 1) / num_steps
    square = even.square()
    shifted: list[float] = (square * SHIFT / (1 + (SHIFT - 1) * square)).tolist()
    return tuple(shifted)


def interval(num_steps: int, index: int, shortcut_mode: str = "8,16,16") -> int:
    """How many sixteenths step `index` of a stage takes; 1 unless there are 12 steps."""
    if num_steps != SHORTCUT_STEPS:
        return 1
    return ((2, 1, 1) if shortcut_mode == "8,16,16" else (1, 1, 2))[index % 3]


def step_length(num_steps: int, index: int, shortcut_mode: str = "8,16,16") -> float:
    """How a distilled network is told the length of step `index` of a stage."""
    if num_steps == SHORTCUT_STEPS:
        return 2 * 4 / interval(num_steps, index, shortcut_mode)
    return 2 * num_steps / 4


def check_steps(num_steps: int, sampling: SamplingConfig) -> None:
    """Raises ConfigError when the steps cannot be dealt out to the quarters and the chunks in flight."""
    if num_steps < 4 or num_steps % 4 or num_steps % sampling.window_size:
        raise ConfigError(
            f"{num_steps} denoise steps cannot be dealt out to 4 quarters and {sampling.window_size} chunks in flight; "
            f"use a multiple of 4 and of {sampling.window_size}: --set engine.denoise_steps={sampling.num_steps}"
        )
