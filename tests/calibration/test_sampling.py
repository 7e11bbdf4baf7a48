"""Sampled queries go through all columns of a frame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.calibration.sampling import spread_over_frames


@pytest.mark.parametrize("width", [4, 2])
def test_the_demo_grid_has_no_column_that_is_left_out(width):
    columns = {token % width for token in spread_over_frames(128, 16, 32)}
    assert columns == set(range(width))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(1, 40), st.integers(0, 100))
def test_columns_are_all_seen_if_there_are_as_many_samples(height, width, num_frames, num_samples, first):
    num_tokens = height * width * num_frames
    sampled = spread_over_frames(num_tokens, height * width, num_samples, first)
    assert len(sampled) >= min(num_samples, num_tokens) and sampled[-1] < num_tokens
    if len(sampled) >= width:
        assert {token % width for token in sampled} == set(range(width))


@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 40))
def test_all_tokens_have_their_turn(num_tokens, tokens_per_frame, num_samples):
    turns = [spread_over_frames(num_tokens, tokens_per_frame, num_samples, first) for first in range(num_tokens)]
    assert {token for turn in turns for token in turn} == set(range(num_tokens))
