"""Blocks: every token has one place, blocks hold one place of consecutive frames, awkward lengths are filled up."""

from __future__ import annotations

import pytest
import torch

from pagedvid.quant.blocks import BlockLayout, cosine_transform


@pytest.mark.parametrize("num_tokens", [1, 7, 15, 16, 45, 60, 61, 119])
@pytest.mark.parametrize("num_frames", [1, 3, 4])
def test_every_token_is_found_at_its_place(num_frames, num_tokens):
    layout = BlockLayout(15, num_frames)
    tokens = layout.tokens(num_tokens)
    assert tokens.shape == (layout.num_blocks(num_tokens), num_frames)
    assert tokens.min() >= 0 and tokens.max() < num_tokens
    assert torch.equal(tokens.flatten()[layout.places(num_tokens)], torch.arange(num_tokens))


def test_a_block_is_one_place_of_consecutive_frames():
    tokens = BlockLayout(4, 3).tokens(24)
    assert tokens[1].tolist() == [1, 5, 9]
    assert tokens[6].tolist() == [14, 18, 22]


def test_missing_frames_repeat_the_last_one_at_the_same_place():
    tokens = BlockLayout(4, 3).tokens(8)  # two frames of a block of three
    assert tokens.tolist() == [[0, 4, 4], [1, 5, 5], [2, 6, 6], [3, 7, 7]]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_cosine_transform_is_orthonormal_and_starts_with_the_mean(size):
    matrix = cosine_transform(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix[0], torch.full((size,), size**-0.5))
