"""The maps of a projection, and why nothing stored has to be mapped."""

from __future__ import annotations

import torch

from pagedvid.rotary.projective import map_points


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_four_channels_are_a_point():
    x, matrix = randn(3, 8, seed=0), randn(4, 4, seed=1)
    mapped = map_points(x, matrix)
    for row in range(3):
        for first in (0, 4):
            torch.testing.assert_close(mapped[row, first : first + 4], matrix @ x[row, first : first + 4])


def test_each_leading_index_has_its_matrix():
    x, matrices = randn(2, 5, 3, 8, seed=0), randn(2, 1, 4, 4, seed=1)
    mapped = map_points(x, matrices)
    assert mapped.shape == x.shape
    for i in range(2):
        torch.testing.assert_close(mapped[i, 4], map_points(x[i, 4], matrices[i, 0]))


def test_a_pulled_back_query_sees_stored_keys_as_the_projected_query_sees_projected_ones():
    q, k, p_query, p_key = randn(5, 16, seed=0), randn(7, 16, seed=1), randn(4, 4, seed=2), randn(4, 4, seed=3)
    projected = map_points(q, p_query.mT) @ map_points(k, torch.linalg.inv(p_key)).T
    relative = p_query @ torch.linalg.inv(p_key)
    torch.testing.assert_close(map_points(q, relative.mT) @ k.T, projected)


def test_an_output_of_stored_values_is_mapped_afterwards():
    v, weights, p_query, p_key = randn(7, 16, seed=1), randn(5, 7, seed=4), randn(4, 4, seed=2), randn(4, 4, seed=3)
    projected = map_points(weights @ map_points(v, torch.linalg.inv(p_key)), p_query)
    torch.testing.assert_close(map_points(weights @ v, p_query @ torch.linalg.inv(p_key)), projected)
