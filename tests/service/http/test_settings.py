"""Seconds and frames, for models whose latent frames give one or several output frames."""

from __future__ import annotations

import pytest

from pagedvid.service.http.settings import ServedModel


@pytest.mark.parametrize(
    ("frames_per_latent", "seconds", "num_frames", "length"),
    [
        (1, 4, 48, 4.0),
        (1, 0.01, 1, 1 / 12),
        (1, 1 / 12, 1, 1 / 12),
        (4, 1 / 12, 1, 1 / 12),
        (4, 2 / 12, 2, 5 / 12),
        (4, 5 / 12, 2, 5 / 12),
        (4, 6 / 12, 3, 9 / 12),
        (4, 81 / 12, 21, 81 / 12),
    ],
)
def test_frames_of_a_length(frames_per_latent, seconds, num_frames, length):
    model = ServedModel("m", 12.0, frames_per_latent=frames_per_latent)
    assert model.num_frames(seconds) == num_frames
    assert model.seconds(num_frames) == pytest.approx(length)
    assert model.seconds(num_frames) >= seconds - 1 / 24
