"""Landmarks read from pixels are those that were drawn, and a score falls when they move or change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pagedvid.models.walk.landmarks import NUM_KINDS
from pagedvid.models.walk.score import read_landmarks, same_landmarks
from pagedvid.models.walk.world import Landmark, landmarks, render


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_are_read_as_they_were_drawn(seed: int):
    assert read_landmarks(render(seed, -8, 3, 24, 24)) == {
        (row + 8, column - 3): it for (row, column), it in landmarks(seed, -8, 3, 24, 24).items()
    }


def test_noise_and_blur_of_a_few_levels_change_nothing():
    image = render(2, 0, 0, 24, 24)
    noisy = image + np.random.default_rng(0).normal(0, 12, image.shape)
    assert read_landmarks(noisy.clip(0, 255).astype(np.uint8)) == read_landmarks(image)


def test_an_image_without_landmarks_has_none():
    assert read_landmarks(np.full((64, 64, 3), 120, dtype=np.uint8)) == {}


def test_same_landmarks_are_of_one_kind_within_one_pixel():
    first = {(0, 0): Landmark(3, 1, 1), (2, 5): Landmark(NUM_KINDS - 1, 0, 3)}
    assert same_landmarks(first, first) == 2
    assert same_landmarks(first, {}) == 0
    assert same_landmarks(first, {(0, 0): replace(first[0, 0], row=2, column=0)}) == 1
    assert same_landmarks(first, {(0, 0): replace(first[0, 0], row=3)}) == 0
    assert same_landmarks(first, {(0, 0): replace(first[0, 0], kind=4)}) == 0
    assert same_landmarks(first, {(0, 1): first[0, 0]}) == 0
