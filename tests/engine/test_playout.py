"""A viewer's clock: examples, and a viewer that plays frame by frame as the oracle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.engine.playout import Playout
from pagedvid.errors import ConfigError


def credits(playout, *times):
    return [playout.credit_seconds(now) for now in times]


def test_the_picture_in_the_docstring():
    playout = Playout(4.0, now=0.0)
    assert credits(playout, 0, 1) == [0, -1]
    playout.deliver(8, now=2.0)
    assert credits(playout, 2, 3, 4, 5, 6) == [2, 1, 0, -1, -2]
    playout.deliver(8, now=7.0)
    assert playout.credit_seconds(7) == 2
    assert (playout.waited_seconds(7), playout.stalled_seconds(7), playout.played_seconds(7)) == (2, 3, 2)
    assert playout.play_ratio(7) == pytest.approx(2 / 7)


def test_chunks_in_time_add_up_without_a_stall():
    playout = Playout(10.0, now=100.0)
    for now in (100.0, 100.5, 101.5, 102.0):
        playout.deliver(10, now)
    assert playout.credit_seconds(102) == pytest.approx(2)
    assert (playout.waited_seconds(102), playout.stalled_seconds(102), playout.play_ratio(102)) == (0, 0, 1)


def test_the_first_chunk_of_nobody():
    playout = Playout(24.0, now=5.0)
    assert (playout.waited_seconds(9), playout.stalled_seconds(9), playout.play_ratio(9)) == (4, 0, 0)


def test_the_clock_goes_on_from_what_the_client_reports():
    playout = Playout(4.0, now=0.0)
    playout.deliver(40, now=0.0)
    playout.report(4, now=5.0)  # it began late, or was paused by its viewer
    assert credits(playout, 5, 6) == [9, 8]
    playout.report(30, now=7.0)
    assert credits(playout, 7, 8) == [2.5, 1.5]
    assert playout.played_seconds(8) == 8.5


def test_a_stalled_client_reports_nothing_new():
    playout = Playout(4.0, now=0.0)
    playout.deliver(4, now=0.0)
    for now in (1.5, 2.0, 3.0):
        playout.report(4, now)
        assert playout.credit_seconds(now) == 1 - now
    playout.deliver(4, now=3.0)
    assert (playout.credit_seconds(3), playout.stalled_seconds(3)) == (1, 2)


def test_a_client_that_is_behind_its_clock_was_not_stalled():
    playout = Playout(4.0, now=0.0)
    playout.deliver(8, now=0.0)
    assert playout.stalled_seconds(5) == 3
    playout.report(4, now=5.0)
    assert (playout.stalled_seconds(5), playout.credit_seconds(5)) == (0, 1)


def test_a_client_that_is_ahead_of_its_clock_stalls_from_then_on():
    playout = Playout(4.0, now=0.0)
    playout.deliver(8, now=0.0)
    playout.report(8, now=1.0)
    assert credits(playout, 1, 2) == [0, -1]
    assert playout.stalled_seconds(2) == 1


@pytest.mark.parametrize("num_frames", [9, -1, 2.5])
def test_reports_that_cannot_be(num_frames):
    playout = Playout(4.0, now=0.0)
    playout.deliver(8, now=0.0)
    with pytest.raises(ConfigError, match=r"8 were delivered|at least 0|whole number"):
        playout.report(num_frames, now=1.0)
    assert playout.credit_seconds(1) == 1


@pytest.mark.parametrize("speed", [0, -1.0, float("nan")])
def test_a_speed_must_be_above_zero(speed):
    with pytest.raises(ConfigError, match="frames_per_second is"):
        Playout(speed, now=0.0)


def test_a_pause_is_no_stall():
    playout = Playout(4.0, now=0.0)
    playout.deliver(8, now=0.0)
    playout.excuse(now=1.0)
    assert credits(playout, 1, 2, 9) == [1, 0, 0]
    playout.owe(now=10.0)
    assert credits(playout, 10, 11) == [0, -1]
    playout.deliver(4, now=11.0)
    assert (playout.stalled_seconds(11), playout.played_seconds(11)) == (1, 2)


def test_a_short_pause_that_the_viewer_does_not_notice():
    playout = Playout(4.0, now=0.0)
    playout.deliver(8, now=0.0)
    playout.excuse(now=0.5)
    playout.owe(now=1.0)
    assert credits(playout, 1, 2, 3) == [1, 0, -1]


def test_a_stall_ends_with_the_pause_that_interrupts_it():
    playout = Playout(4.0, now=0.0)
    playout.deliver(4, now=0.0)
    playout.excuse(now=3.0)
    assert playout.stalled_seconds(9) == 2


def test_a_finished_video_is_played_out():
    playout = Playout(4.0, now=0.0)
    playout.deliver(40, now=1.0)
    playout.excuse(now=1.0)
    assert (playout.played_seconds(50), playout.stalled_seconds(50)) == (10, 0)
    assert playout.play_ratio(50) == pytest.approx(10 / 11)


def test_a_fork_begins_where_its_source_was():
    playout = Playout(4.0, now=0.0, num_frames=20)
    assert credits(playout, 0, 1) == [0, -1]
    playout.deliver(4, now=2.0)
    assert (playout.credit_seconds(2), playout.waited_seconds(2), playout.stalled_seconds(2)) == (1, 2, 0)
    assert playout.played_seconds(9) == 1
    playout.report(22, now=9.0)
    assert playout.credit_seconds(9) == 0.5


TICK = 1 / 8
EVENTS = st.lists(st.sampled_from(["deliver", "excuse", "owe", "wait"]), max_size=60)


@given(EVENTS, st.sampled_from([1, 2, 4]))
def test_a_viewer_that_plays_tick_by_tick(events, ticks_per_frame):
    """One event a tick. In each tick the viewer plays an eighth of a second, or waits, or has nothing to wait for."""
    playout = Playout(1 / (TICK * ticks_per_frame), now=0.0)
    delivered = played = waited = stalled = standing = 0  # ticks
    is_owed = True
    for number, event in enumerate(events):
        now = number * TICK
        if event == "deliver":
            playout.deliver(3, now)
            standing = 0 if played == delivered else standing
            delivered += 3 * ticks_per_frame
        elif event == "excuse":
            playout.excuse(now)
            is_owed, standing = False, 0
        elif event == "owe":
            playout.owe(now)
            is_owed, standing = True, standing if is_owed else 0
        if played < delivered:
            played, standing = played + 1, 0
        elif is_owed:
            standing += 1
            waited, stalled = waited + (not delivered), stalled + bool(delivered)
        later = now + TICK
        assert playout.credit_seconds(later) == TICK * (delivered - played - standing)
        assert playout.played_seconds(later) == TICK * played
        assert (playout.waited_seconds(later), playout.stalled_seconds(later)) == (TICK * waited, TICK * stalled)
        assert 0 <= playout.play_ratio(later) <= 1
