"""What the policies do to viewers: a counted device (viewers.py) instead of a model."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedvid.engine.scheduler import FAR_AHEAD_SECONDS, MOST_WAITED_STEPS, POLICIES
from tests.engine.viewers import CHUNK_FRAMES, CHUNK_ROUNDS, Device, Video

ENDLESS = 10**6


def round_seconds(speeds, load):
    """So that viewers at these speeds want `load` of the device."""
    return load * CHUNK_FRAMES / (CHUNK_ROUNDS * sum(speeds))


def live(speeds, first=0):
    return [Video(first + number, 0.0, ENDLESS, speed) for number, speed in enumerate(speeds)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([6.0, 12.0, 24.0]), min_size=2, max_size=8), st.integers(1, 12), st.booleans())
def test_viewers_that_the_device_can_serve_do_not_stall(speeds, max_batch, with_throughput):
    """Once all have begun and have made up for the wait; throughput jobs may take steps when they are overdue."""
    others = [Video(100, 0.0, ENDLESS, None)] if with_throughput else []
    device = Device([*live(speeds), *others], "deadline", round_seconds(speeds, load=0.9), max_batch)
    device.run_until(60)
    before = device.stalled_seconds()
    device.run_until(160)
    assert device.stalled_seconds() == before
    assert all(video.num_rounds_done for video in others)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_viewers_under_every_policy(policy):
    speeds = [6.0, 6.0, 24.0]
    device = Device(live(speeds), policy, round_seconds(speeds, load=0.9))
    device.run_until(120)
    stalled = sum(device.stalled_seconds())
    if policy == "deadline":
        assert stalled == 0 and device.mean_play_ratio() > 0.99
    elif policy == "round_robin":  # equal shares are too little for the fastest viewer
        assert stalled > 20
    else:  # the oldest video never ends, so the others hardly begin
        assert device.mean_play_ratio() < 0.5


def test_a_viewer_who_comes_later_does_not_disturb_the_others():
    speeds = [12.0] * 3
    late = Video(3, 30.0, ENDLESS, 12.0)
    device = Device([*live(speeds), late], "deadline", round_seconds([12.0] * 4, load=0.9))
    device.run_until(90)
    assert device.stalled_seconds() == [0] * 4
    assert late.playout.waited_seconds(90) <= 2 * CHUNK_ROUNDS * device.round_seconds


@pytest.mark.parametrize("max_batch", [1, 3])
def test_throughput_jobs_take_what_is_left(max_batch):
    """One by one, viewers are made FAR_AHEAD_SECONDS ahead and no more; all other time is the throughput jobs'."""
    speeds = [12.0, 12.0]
    device = Device([*live(speeds), Video(2, 0.0, ENDLESS, None)], "deadline", round_seconds(speeds, 0.5), max_batch)
    device.run_until(60)
    before = device.videos[2].num_rounds_done
    device.run_until(160)
    assert device.stalled_seconds() == [0, 0]
    share = (device.videos[2].num_rounds_done - before) * device.round_seconds / 100
    if max_batch == 1:
        assert share == pytest.approx(0.5, abs=0.05)
        assert all(video.credit_seconds < FAR_AHEAD_SECONDS + 2 * CHUNK_FRAMES / 12 for video in device.videos[:2])
    else:
        assert share == pytest.approx(1 / 3, abs=0.02)  # all fit in every forward, and have equal shares


def test_nobody_starves_in_an_overload():
    speeds = [24.0] * 6
    others = [Video(number, 0.0, ENDLESS, None) for number in range(6, 9)]
    device = Device([*live(speeds), *others], "deadline", round_seconds(speeds, load=3.0))
    device.run_until(400)
    assert device.now / device.round_seconds > 3 * MOST_WAITED_STEPS
    assert max(video.most_waited for video in device.videos) <= MOST_WAITED_STEPS + len(device.videos) - 1
    assert min(video.num_rounds_done for video in others) >= 2


def mixed_load(seed):
    """Poisson arrivals for two minutes: half of them live, 0.75 of the device each, so 1.5 in all."""
    chance, speed, num_chunks = random.Random(seed), 12.0, 12
    seconds = round_seconds([speed], load=0.25)
    mean_gap = seconds * CHUNK_ROUNDS * num_chunks / 1.5
    videos, now = [], 0.0
    while (now := now + chance.expovariate(1 / mean_gap)) < 120:
        videos.append(Video(len(videos), now, num_chunks, speed if chance.random() < 0.5 else None))
    return videos, seconds


@pytest.mark.parametrize("seed", range(3))
def test_viewers_play_on_where_throughput_jobs_overload_the_device(seed):
    ratios = {}
    for policy in ("fcfs", "round_robin", "deadline"):
        videos, seconds = mixed_load(seed)
        device = Device(videos, policy, seconds, max_batch=2)
        device.run_until(120)
        ratios[policy] = device.mean_play_ratio()
    assert ratios["deadline"] > 0.7  # at times the live videos alone are too many
    assert ratios["deadline"] > 1.5 * max(ratios["fcfs"], ratios["round_robin"])
