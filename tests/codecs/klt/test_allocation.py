"""Bits by water-filling, against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch

from pagedvid.codecs.klt.allocation import DISTORTION, GRANULE, choose_segments
from pagedvid.codecs.packing import WIDTHS


def distortion(spectrum: torch.Tensor, segments: Mapping[int, int]) -> float:
    widths = [width for width in WIDTHS for _ in range(segments[width])]
    widths += [0] * (len(spectrum) - len(widths))
    return sum(float(value) * DISTORTION[width] for value, width in zip(spectrum, widths, strict=True))


@pytest.mark.parametrize("bits_per_value", [0.5, 1, 1.5, 2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.5, 3.0])
def test_the_greedy_choice_is_close_to_the_best_possible(decay, bits_per_value):
    spectrum = torch.exp(-decay * torch.arange(5.0)).repeat_interleave(GRANULE)
    budget = int(bits_per_value * len(spectrum))
    best = min(
        distortion(spectrum, {width: GRANULE * choice.count(width) for width in WIDTHS})
        for choice in itertools.product((0, *WIDTHS), repeat=5)
        if GRANULE * sum(choice) <= budget
    )
    # Where a wider width no longer fits, the greedy choice may be a few per cent worse.
    assert distortion(spectrum, choose_segments(spectrum, budget)) <= 1.35 * best


@pytest.mark.parametrize("budget", [0, 7, 8, 100, 511, 4096])
def test_the_budget_is_kept_and_used(budget):
    spectrum = torch.rand(64, generator=torch.Generator().manual_seed(0)).sort(descending=True).values
    used = sum(width * count for width, count in choose_segments(spectrum, budget).items())
    # From 4 bits, the next width takes 4 more.
    assert used <= budget and (used > budget - 4 * GRANULE or used == 8 * 64)


def test_only_shares_count():
    spectrum = torch.rand(64, generator=torch.Generator().manual_seed(0)).sort(descending=True).values
    assert choose_segments(spectrum, 128) == choose_segments(1e6 * spectrum, 128)
