"""Paths are named by their motion, wherever and whenever they start, and only when they follow one."""

from __future__ import annotations

import numpy as np
import pytest

from lib.path_reader import fit_path, wrapped
from pagedvid.models.demo.world import FRAME_SIZE, MOTIONS, Thing

FRAMES_F = np.arange(200.0, 224.0)


def places(motion: str, phase: float = 0.0) -> np.ndarray:
    """[24, 2] in 0..32."""
    return np.mod(Thing("circle", "red", "small", motion, 30.0, 3.0, phase).centers(FRAMES_F), FRAME_SIZE)


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_named_and_predicted(motion: str) -> None:
    phase = 2.0 if motion in ("circling", "bouncing") else 0.0
    path_F2 = places(motion, phase)
    path_F2 += np.random.default_rng(0).normal(scale=0.3, size=path_F2.shape)
    path_F2[[3, 4, 5, 17]] = np.nan
    fitted = fit_path(path_F2, FRAMES_F)
    assert fitted is not None and fitted.motion == motion
    later_F = np.arange(300.0, 324.0)
    truth = Thing("circle", "red", "small", motion, 30.0, 3.0, phase).centers(later_F)
    assert np.abs(wrapped(fitted.centers(later_F) - truth)).max() < 0.6


def test_what_follows_no_motion_is_not_named() -> None:
    rng = np.random.default_rng(0)
    assert fit_path(rng.uniform(0, 32, (24, 2)), FRAMES_F) is None
    diagonal_F2 = places("right") + places("down")
    assert fit_path(np.mod(diagonal_F2, FRAME_SIZE), FRAMES_F) is None
    backwards_F2 = places("circling")[::-1]
    assert fit_path(backwards_F2, FRAMES_F) is None


def test_a_path_that_is_mostly_unknown_is_not_named() -> None:
    path_F2 = places("still")
    path_F2[:13] = np.nan
    assert fit_path(path_F2, FRAMES_F) is None
    assert fit_path(np.full((24, 2), np.nan), FRAMES_F) is None


def test_distances_are_taken_the_short_way_round() -> None:
    np.testing.assert_allclose(wrapped(np.array([31.0, -31.0, 15.0, 33.0])), [-1.0, 1.0, 15.0, 1.0])
