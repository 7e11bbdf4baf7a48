"""What is measured is what is said: it grows with the work, and everything that was told is recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pagedvid.output.fragments import fragment
from pagedvid.service.records import NewSession
from scaling.driver_costs import (
    bookkeeping,
    chunk_event,
    encoding,
    moving_frames,
    queueing,
    replicas_costs,
    service,
    watching,
    writing,
)
from scaling.timing import cost_of
from scaling.viewer_costs import viewer_costs


def test_frames_move_and_are_the_same_again() -> None:
    frames = moving_frames(3, 32, 48, 1)
    assert frames.shape == (3, 32, 48, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames, moving_frames(3, 32, 48, 1))
    assert np.abs(frames[1].astype(int) - frames[0]).mean() > 1


def test_larger_frames_take_longer() -> None:
    (small, small_bytes), (large, large_bytes) = (encoding(moving_frames(4, n, n, 0), 3) for n in (32, 256))
    assert large.cpu_us > 2 * small.cpu_us and large_bytes > 2 * small_bytes
    assert small_bytes > len(fragment(np.zeros((4, 32, 32, 3), np.uint8), 0, 16, 1))  # type: ignore[arg-type]


def test_calls_are_counted() -> None:
    calls: list[int] = []
    cost = cost_of(lambda: calls.append(sum(range(1000))), 3, 10)
    assert len(calls) == 31 and 1 < cost.cpu_us < 10_000


def test_writing_flushes(tmp_path: Path) -> None:
    append, row = writing(1000, tmp_path, 3)
    assert (tmp_path / "sessions" / "video" / "video.mp4").stat().st_size == 4000
    assert append.wall_us > 0 and row.wall_us > 0


def test_more_replicas_take_longer_to_look_at() -> None:
    few, many = (replicas_costs(number, 2, 5) for number in (2, 200))
    assert many["place"].cpu_us > 3 * few["place"].cpu_us
    assert many["stats"].cpu_us > 3 * few["stats"].cpu_us
    assert queueing(100) > 0


def test_a_service_records_what_its_stand_in_tells(tmp_path: Path) -> None:
    frames = moving_frames(2, 32, 32, 0)
    with service(tmp_path) as (sessions, worker):
        id = sessions.create(NewSession("a prompt", 100)).id
        for number in range(3):
            worker.tell(chunk_event(id, number, frames))
    with service(tmp_path) as (sessions, _):
        assert sessions.get(id).frames_done == 6


def test_a_session_and_a_viewer_cost_something(tmp_path: Path) -> None:
    assert bookkeeping(tmp_path / "chunks", 4, 3) > 50
    assert watching(tmp_path / "live", 20, 0.5) > 10
    assert all(cost > 0 for cost in viewer_costs(tmp_path / "viewers", moving_frames(2, 64, 64, 0), 3).values())
