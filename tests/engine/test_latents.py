"""The latents of a video by chunk and by frame."""

from __future__ import annotations

import pytest
import torch

from pagedvid.engine.job import Latents
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Range, Round

GEOMETRY = ModelGeometry(1, 1, 1, 8, tokens_per_frame=2, frames_per_chunk=3)


def initial(chunk: int) -> torch.Tensor:
    """Every token holds its number in the video; the fourth chunk has no noise."""
    if chunk == 3:
        raise ValueError("no noise for chunk 3")
    return torch.arange(6.0)[:, None] + 6 * chunk


def test_chunks_begin_when_a_round_first_carries_one_of_their_frames():
    latents = Latents(GEOMETRY)
    latents.begin(Round((Range(range(0, 3), 1.0),)), initial)
    assert list(latents.chunks) == [0]
    latents.chunks[0] += 100
    latents.begin(Round((Range((1, 5), 1.0), Range(range(6, 9), 1.0))), initial)
    assert list(latents.chunks) == [0, 1, 2] and latents.chunks[0][0].item() == 100
    with pytest.raises(ValueError, match="no noise for chunk 3"):
        latents.begin(Round((Range((9,), 1.0),)), initial)


def test_frames_are_gathered_from_wherever_they_are():
    latents = Latents(GEOMETRY)
    latents.begin(Round((Range(range(0, 9), 1.0),)), initial)
    assert latents.of(range(3, 6)) is latents.chunks[1]
    assert latents.of((3, 4, 5)) is latents.chunks[1]
    assert latents.of((0, 4, 8)).ravel().tolist() == [0, 1, 8, 9, 16, 17]
    assert latents.of(range(2, 5)).ravel().tolist() == [4, 5, 6, 7, 8, 9]
    assert latents.of((4,)).ravel().tolist() == [8, 9]
