"""Trips out and back: they come back by the same way, and what is there again is counted from the pixels."""

from __future__ import annotations

import numpy as np
import pytest

from horizon.trips import Revisits, draw_trips, score
from pagedvid.models.walk.actions import read_walk
from pagedvid.models.walk.score import read_landmarks
from pagedvid.models.walk.spec import VIEW_CELLS
from pagedvid.models.walk.world import render

OUT = 30


@pytest.fixture(scope="module")
def videos() -> list[np.ndarray]:
    """What a perfect model would show."""
    trips = draw_trips(3, OUT, seed=1)
    places = [read_walk(trip.prompt).places(2 * OUT + 1) for trip in trips]
    return [
        np.stack([render(trip.map_seed, *place, VIEW_CELLS, VIEW_CELLS) for place in of_trip.tolist()])
        for trip, of_trip in zip(trips, places, strict=True)
    ]


def test_every_view_of_the_way_out_comes_again_on_the_way_back():
    for trip in draw_trips(5, OUT, seed=0):
        places = read_walk(trip.prompt).places(2 * OUT + 1)
        assert np.array_equal(places, places[::-1])
        assert len(np.unique(places[: OUT + 1], axis=0)) == OUT + 1  # and none of them comes on the way out itself


def test_a_larger_number_of_trips_continues_the_list():
    assert draw_trips(5, OUT, seed=3)[:2] == draw_trips(2, OUT, seed=3)


def test_a_perfect_memory_scores_everything(videos: list[np.ndarray]):
    found = score(draw_trips(3, OUT, seed=1), videos, every=4)
    assert found.distances == list(range(4, 2 * OUT + 1, 4)) and sum(found.num_landmarks) > 100
    assert found.num_same == found.num_landmarks and found.reach(90) == 2 * OUT
    assert set(found.psnr) == {58.92} and found.truth_psnr == 58.92


def test_views_that_were_forgotten_count_from_their_distance_on(videos: list[np.ndarray]):
    """The second half of the way back shows one meadow."""
    forgotten = [video.copy() for video in videos]
    for video in forgotten:
        video[OUT + OUT // 2 :] = (138, 184, 92)
    found = score(draw_trips(3, OUT, seed=1), forgotten, every=2)
    near, far = found.accuracy(1, OUT - 1), found.accuracy(OUT, 2 * OUT)
    assert (near, far) == (100, 0) and 20 <= found.reach(90) <= OUT
    assert found.truth_psnr < 30


def test_the_truth_is_the_map_at_the_first_place(videos: list[np.ndarray]):
    trip = draw_trips(3, OUT, seed=1)[0]
    assert len(read_landmarks(videos[0][0])) > 0
    assert np.array_equal(videos[0][-1], render(trip.map_seed, 0, 0, VIEW_CELLS, VIEW_CELLS))


def test_a_reach_is_read_over_several_distances():
    found = Revisits(list(range(4, 44, 4)), [10] * 10, [10, 10, 8, 10, 10, 10, 4, 4, 10, 10], [30.0] * 10, 30.0)
    assert found.accuracy(9, 12) == 80 and found.accuracy(1, 40) == 86
    assert found.reach(90) == 24  # one view at 12 that failed in part does not end it
    assert Revisits([4], [10], [5], [30.0], 30.0).reach(90) == 0


def test_distances_without_landmarks_say_nothing():
    found = Revisits([4, 24, 44], [0, 10, 10], [0, 9, 2], [30.0] * 3, 30.0)
    assert np.isnan(found.accuracy(1, 8)) and found.reach(90) == 24
