"""Made-up items like those of a model's profile, and what an allocation costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pagedvid.budgets.solver import Choices

PAGE_BYTES = 1536
RUNG_PAGES = np.array([0, 1, 2, 3, 4, 6, 8])


def rungs(random: np.random.Generator, scale: float, roughness: float) -> tuple[np.ndarray, np.ndarray]:
    """Pages and errors of 3 to 7 rungs: the errors fall geometrically, times noise of so many nepers."""
    num_rungs = int(random.integers(3, len(RUNG_PAGES) + 1))
    pages = np.sort(random.choice(RUNG_PAGES, num_rungs, replace=False))
    noise = np.exp(roughness * random.normal(size=num_rungs))
    return pages, scale * random.uniform(0.1, 0.6) ** pages * noise


def bits_item(random: np.random.Generator, roughness: float) -> Choices:
    """A table that can be stored in some widths; scales differ by six decades from item to item."""
    pages, errors = rungs(random, 10 ** random.uniform(-6, 0), roughness)
    return Choices(tuple((pages * PAGE_BYTES).tolist()), tuple(errors.tolist()))


def joint_item(random: np.random.Generator, roughness: float, num_windows: int) -> Choices:
    """A head: widths of keys x widths of values x how many chunks it looks back."""
    scale = 10 ** random.uniform(-6, 0)
    key_pages, key_errors = rungs(random, scale, roughness)
    value_pages, value_errors = rungs(random, scale, roughness)
    windows = np.arange(1, num_windows + 1)
    window_errors = scale * 10 ** random.uniform(-3, 0) * random.uniform(0.3, 0.9) ** windows
    pages_KVW = (key_pages[:, None, None] + value_pages[:, None]) * windows
    errors_KVW = key_errors[:, None, None] + value_errors[:, None] + window_errors
    return Choices(tuple((pages_KVW * PAGE_BYTES).ravel().tolist()), tuple(errors_KVW.ravel().tolist()))


def total_bytes(items: Sequence[Choices], numbers: Sequence[int]) -> int:
    return sum(item.num_bytes[number] for item, number in zip(items, numbers, strict=True))


def total_error(items: Sequence[Choices], numbers: Sequence[int]) -> float:
    return math.fsum(item.errors[number] for item, number in zip(items, numbers, strict=True))


def budget_between(items: Sequence[Choices], share: float) -> int:
    """A budget between the cheapest allocation (0) and the dearest (1)."""
    least, most = sum(min(item.num_bytes) for item in items), sum(max(item.num_bytes) for item in items)
    return least + int(share * (most - least))
