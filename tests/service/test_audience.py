"""Viewers of a live session: who is there, how far they are. The clock is an argument."""

from __future__ import annotations

import pytest

from pagedvid.errors import ConfigError
from pagedvid.service.audience import Audience


def audience(num_frames: int = 0) -> Audience:
    """At 8 frames per second; waits when it is more than 4 seconds ahead, or 10 seconds after the last one left."""
    return Audience(8, num_frames, 100.0, max_ahead_seconds=4, grace_seconds=10)


def test_credit_is_what_was_recorded_and_not_played():
    one = audience()
    assert one.credit_seconds(101.0) == -1
    one.receive(16, 102.0)
    assert one.credit_seconds(102.0) == 2
    assert one.credit_seconds(103.0) == 1
    one.report(8, 103.5)
    assert one.credit_seconds(103.5) == 1
    with pytest.raises(ConfigError, match="reports 17 frames"):
        one.report(17, 104.0)


def test_frames_of_before_count_as_played():
    one = audience(num_frames=80)
    one.receive(8, 100.0)
    assert one.credit_seconds(100.0) == 1


def test_a_session_far_ahead_waits_until_half_of_that_is_played():
    one = audience()
    one.receive(32, 100.0)
    assert not one.should_wait(100.0), "4 seconds are allowed"
    one.receive(8, 100.0)
    assert one.should_wait(100.0)
    assert one.should_wait(102.9), "2.1 seconds are left"
    assert not one.should_wait(103.1)
    assert not one.should_wait(101.5), "once it goes on, the whole distance is allowed again"


def test_a_client_that_stands_still_holds_its_session_back():
    one = audience()
    one.receive(40, 100.0)
    for second in range(8):
        one.report(0, 100.0 + second)
        assert one.should_wait(100.0 + second)


def test_viewers_that_leave_and_come_back():
    one = audience()
    assert not one.is_gone(1000.0), "nobody was there yet, so nobody left"
    one.come()
    one.come()
    one.leave(200.0)
    assert not one.is_gone(300.0)
    one.leave(300.0)
    assert not one.is_gone(309.9) and one.is_gone(310.0)
    one.come()
    assert not one.is_gone(400.0)
    one.leave(400.0)
    one.leave(405.0)
    assert one.is_gone(410.0), "who leaves twice has left the first time"
    one.forget_departure()
    assert not one.is_gone(500.0)
