"""Latent grids as tokens."""

from __future__ import annotations

import pytest
import torch

from pagedvid.errors import ConfigError
from pagedvid.models.common.latent_grid import LatentGrid
from tests.models.worldplay.recordings import VARIANTS, inputs, tokens_of
from tests.models.worldplay.rollout import GRIDS


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_those_of_the_networks(variant):
    noise = inputs(variant)["noise"][0]
    assert torch.equal(GRIDS[variant].tokens(noise), tokens_of(variant, noise))


@pytest.mark.parametrize("variant", VARIANTS)
def test_grid_undoes_tokens(variant):
    noise = inputs(variant)["noise"][0]
    assert torch.equal(GRIDS[variant].grid(GRIDS[variant].tokens(noise)), noise)


@pytest.mark.parametrize("size", [(5, 6), (4, 7), (0, 6)])
def test_sizes_that_the_patch_does_not_divide_are_refused(size):
    with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]} positions; this model takes multiples of 2"):
        LatentGrid(4, *size, 2)
