"""A verb may wait long, for a video whose frames are being made again. Nobody else waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pagedvid.errors import WorkerError
from pagedvid.service.session_events import CreditChanged
from tests.service.listener import wait_until
from tests.service.services import LIMITS, Service, new


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


def with_a_video_that_waits(folder: Path) -> tuple[Service, list[str]]:
    """Three live videos after a restart. A prompt of the third one waits for its turn, which is behind the others'."""
    limits = replace(LIMITS, verb_seconds=60)
    service = Service(folder, limits, steps=0)
    ids = [service.sessions.create(new("a", frames, live_frames_per_second=1000)).id for frames in (8, 40, 40)]
    service.sessions.pause(ids[0])
    service.let(4)
    service.wait_for_steps(4)
    service.sessions.prompt(ids[2], "b")
    service.sessions.resume(ids[0])
    service.close()
    return Service(folder, limits, steps=0), ids


def test_the_housekeeper_goes_on(tmp_path, threads):
    service, (ends, runs, waits) = with_a_video_that_waits(tmp_path)
    prompted = threads.submit(service.sessions.prompt, waits, "c")
    wait_until(lambda: service._worker._inbox._later)
    num_events = len(service.events)
    wait_until(lambda: sum(_is_credit(event, runs) for event in service.events[num_events:]) >= 2)
    service.let(6)
    service.wait_for(ends)
    assert not prompted.done()
    service.let()
    assert prompted.result(20).prompt == "c"
    service.wait_for(waits)
    service.close()


def test_the_service_ends_in_time_and_checkpoints_the_others(tmp_path, threads):
    service, (_, runs, waits) = with_a_video_that_waits(tmp_path)
    prompted = threads.submit(service.sessions.prompt, waits, "c")
    wait_until(lambda: service._worker._inbox._later)
    before, began = {id: service.names(id) for id in (runs, waits)}, time.monotonic()
    service.sessions.close(2)
    assert time.monotonic() - began < 15
    with pytest.raises(WorkerError, match="the worker was stopped"):
        prompted.result(10)
    assert service.names(runs) != before[runs]
    assert service.names(waits) == before[waits], "it goes on from where it went on this time"


def _is_credit(event, id: str) -> bool:
    return isinstance(event, CreditChanged) and event.id == id
