"""Live sessions wait for their viewers: when they are too far ahead, and when nobody is there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pagedvid.errors import ConfigError
from pagedvid.service.records import PAUSED_WITHOUT_VIEWER
from pagedvid.service.session_events import CreditChanged
from tests.service.fake_engine import frames_of
from tests.service.listener import wait_until
from tests.service.services import LIMITS, Service, file_of, new

SLOW = replace(LIMITS, max_ahead_seconds=10.0, grace_seconds=0.1)
SPEED = 1.0
"""Frames per second: a chunk lasts four seconds, so a test ends before a viewer's clock has moved on much."""


@pytest.fixture
def service(tmp_path) -> Iterator[Service]:
    one = Service(tmp_path, SLOW, fault=lambda engine: time.sleep(0.003))
    yield one
    one.close()


def states_in_worker(service) -> dict[str, str]:
    return {video.id: video.state for video in service.sessions.stats().videos}


def test_far_ahead_it_waits_and_goes_on_when_that_was_played(service):
    id = service.sessions.create(new("a", 400, live_frames_per_second=SPEED)).id
    wait_until(lambda: states_in_worker(service).get(id) == "paused")
    record = service.sessions.get(id)
    assert record.state == "in_progress", "its user has not paused it"
    assert 12 <= record.frames_done < 400 and service.sessions.credit_seconds(id) > 10
    service.sessions.played(id, record.frames_done)
    wait_until(lambda: service.sessions.get(id).frames_done > record.frames_done)
    assert any(isinstance(event, CreditChanged) and event.id == id for event in service.events)
    with pytest.raises(ConfigError, match="frames as played"):
        service.sessions.played(id, 10_000)


def test_a_viewer_who_has_seen_everything_gets_the_whole_video(service):
    id = service.sessions.create(new("a", 100, live_frames_per_second=SPEED)).id
    while service.sessions.get(id).state != "completed":
        service.sessions.played(id, service.sessions.get(id).frames_done)
    assert service.content(id) == file_of(frames_of(3, ["a"] * 25))
    assert service.sessions.credit_seconds(id) is None


def test_without_viewers_it_is_paused_until_one_comes(service):
    id = service.sessions.create(new("a", 400, live_frames_per_second=SPEED)).id
    service.sessions.client_came(id)
    service.wait_for_chunks(id, 1)
    service.sessions.client_left(id)
    service.wait_for(id, "paused")
    assert service.sessions.get(id).pause_reason == PAUSED_WITHOUT_VIEWER
    service.sessions.client_came(id)
    assert service.sessions.get(id).state == "in_progress"
    service.sessions.client_left(id)
    service.wait_for(id, "paused")
    service.sessions.resume(id)
    assert service.sessions.get(id).state == "in_progress", "its user wants it to go on without viewers"
    service.sessions.pause(id)
    service.sessions.client_came(id)
    assert service.sessions.get(id).pause_reason == "user", "a viewer does not undo what the user asked for"


def test_viewers_of_a_video_that_is_not_live_change_nothing(service):
    id = service.sessions.create(new("a", 10)).id
    service.sessions.client_came(id)
    service.sessions.client_left(id)
    service.sessions.played(id, 3)
    assert service.sessions.credit_seconds(id) is None
    service.wait_for(id)
