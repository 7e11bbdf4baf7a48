"""Small profiles, and a calibration that holds one."""

from __future__ import annotations

import torch

from pagedvid.budgets.profile import Profile, with_profile
from pagedvid.codecs.registry import LADDERS
from pagedvid.codecs.tables_file import Calibration
from tests.codecs.klt.scenes import SPAN_TOKENS, tables

LAYERS, HEADS, PROMPTS, RECENT = 2, 2, 3, 3


def calibration() -> Calibration:
    return Calibration.of("toy", [tables("keys")] * LAYERS, [tables("values")] * LAYERS, "four seeds")


def profile(ladder: str = "klt", seed: int = 0) -> Profile:
    """Errors that fall with the bits, at other heights for every head."""
    generator = torch.Generator().manual_seed(seed)
    rungs = LADDERS[ladder]

    def falling(*shape: int) -> torch.Tensor:
        height = 10 ** (4 * torch.rand(PROMPTS, LAYERS, HEADS, *shape[:-1], 1, generator=generator) - 3)
        return height * torch.rand(PROMPTS, LAYERS, HEADS, *shape, generator=generator).cumprod(-1)

    windows = falling(2, RECENT)
    windows[:, :, :, 1, -1] = 0
    rows = 12 if ladder == "klt" else 36
    prompts = tuple(f"prompt {number}" for number in range(PROMPTS))
    return Profile(
        ladder, rungs, rows, SPAN_TOKENS, 1, RECENT, prompts, falling(len(rungs)), falling(len(rungs)), windows
    )


def profiled() -> Calibration:
    return with_profile(calibration(), profile())
