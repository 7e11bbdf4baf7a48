"""Blocks: every token has one place, blocks hold one place of consecutive frames, incomplete blocks are filled up."""

from __future__ import annotations

import pytest
import torch

from pagedvid.codecs.klt.blocks import BlockLayout, cosine_transform, places_in_pages, tokens_in_pages

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_tokens", [1, 7, 15, 16, 45, 60, 61, 119])
@pytest.mark.parametrize("num_frames", [1, 3, 4])
@pytest.mark.parametrize("page_blocks", [1, 4, 15, 30])
def test_every_token_is_found_at_its_place(page_blocks, num_frames, num_tokens):
    layout = BlockLayout(15, num_frames)
    tokens = tokens_in_pages(layout, num_tokens, page_blocks, CPU)
    places = places_in_pages(layout, num_tokens, page_blocks, CPU)
    tokens = torch.arange(num_tokens) if tokens is None else tokens
    places = torch.arange(num_tokens) if places is None else places
    num_pages = -(-layout.num_blocks(num_tokens) // page_blocks)
    assert tokens.shape == (num_pages * num_frames * page_blocks,)
    assert tokens.min() >= 0 and tokens.max() < num_tokens
    assert torch.equal(tokens[places], torch.arange(num_tokens))


def test_a_page_of_whole_frames_keeps_the_order_of_tokens():
    layout = BlockLayout(16, 8)
    assert tokens_in_pages(layout, 256, 16, CPU) is None and places_in_pages(layout, 256, 16, CPU) is None
    assert tokens_in_pages(layout, 256, 8, CPU) is not None


def test_pages_hold_consecutive_blocks_frame_by_frame():
    tokens = tokens_in_pages(BlockLayout(4, 3), 24, 2, CPU)
    assert tokens is not None
    assert tokens.view(4, 3, 2)[1].tolist() == [[2, 3], [6, 7], [10, 11]]  # blocks 2 and 3
    assert tokens.view(4, 3, 2)[2].tolist() == [[12, 13], [16, 17], [20, 21]]


def test_the_last_page_repeats_its_last_block():
    tokens = tokens_in_pages(BlockLayout(4, 2), 8, 3, CPU)
    assert tokens is not None
    assert tokens.view(2, 2, 3)[1].tolist() == [[3, 3, 3], [7, 7, 7]]


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
