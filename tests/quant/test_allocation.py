"""Bits by water-filling, against brute force, and Lloyd-Max levels, against Max's table."""

from __future__ import annotations

import itertools

import pytest
import torch

from pagedvid.quant.allocation import DISTORTION, GRANULE, choose_segments, lloyd_max, widths_by_rank
from pagedvid.quant.fields import WIDTHS


def distortion(importance: torch.Tensor, segments: dict[int, int]) -> float:
    widths = widths_by_rank(segments, len(importance)).tolist()
    ranked = importance.sort(descending=True).values
    return sum(float(value) * DISTORTION[width] for value, width in zip(ranked, widths, strict=True))


@pytest.mark.parametrize("bits_per_value", [0.5, 1, 1.5, 2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.5, 3.0])
def test_the_greedy_choice_is_close_to_the_best_possible(decay, bits_per_value):
    importance = torch.exp(-decay * torch.arange(5.0)).repeat_interleave(GRANULE)
    budget = int(bits_per_value * len(importance))
    chosen = choose_segments(importance[None], budget)
    best = min(
        distortion(importance, {width: GRANULE * choice.count(width) for width in WIDTHS})
        for choice in itertools.product((0, *WIDTHS), repeat=5)
        if GRANULE * sum(choice) <= budget
    )
    # Where one wide step no longer fits, greedy may leave a few per cent on the table.
    assert distortion(importance, chosen) <= 1.35 * best


@pytest.mark.parametrize("budget", [0, 7, 8, 100, 511, 4096])
def test_the_budget_is_kept_and_used(budget):
    importance = torch.rand(6, 64, generator=torch.Generator().manual_seed(0))
    used = sum(width * count for width, count in choose_segments(importance, budget).items())
    # From 4 bits the next step is 4 wide.
    assert used <= budget and (used > budget - 4 * GRANULE or used == 8 * 64)


def test_heads_count_by_their_shares_not_by_their_loudness():
    quiet, loud = torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
    assert choose_segments(torch.stack([quiet, loud]), 128) == choose_segments(torch.stack([quiet, 1e6 * loud]), 128)


def test_levels_of_a_gaussian_are_those_of_max():
    values = torch.special.ndtri((torch.arange(100_000) + 0.5) / 100_000)
    torch.testing.assert_close(lloyd_max(values, 2), torch.tensor([-0.7979, 0.7979]), atol=2e-3, rtol=0)
    torch.testing.assert_close(lloyd_max(values, 4), torch.tensor([-1.510, -0.4528, 0.4528, 1.510]), atol=2e-3, rtol=0)
