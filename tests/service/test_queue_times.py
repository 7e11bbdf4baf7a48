"""Times in the queue: of videos that begin, each counted once, however they come and go."""

from __future__ import annotations

from pagedvid.engine.requests import VideoStatus
from pagedvid.engine.states import FINISHED, PAUSED, RUNNING, WAITING
from pagedvid.service.queue_times import BOUNDS_SECONDS, QueueTimes


class Queue:
    """States by second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.times = QueueTimes(lambda: self.now)

    def at(self, second: float, **states: str) -> None:
        self.now = second
        self.times.follow([VideoStatus(id, state, "", 8, 0, 0, False, None, 0, 0, 0) for id, state in states.items()])

    @property
    def counts(self) -> dict[float, int]:
        durations = self.times.durations()
        return {bound: count for bound, count in zip(BOUNDS_SECONDS, durations.counts, strict=False) if count}

    @property
    def sum_seconds(self) -> float:
        return self.times.durations().sum_seconds


def test_from_waiting_to_running():
    queue = Queue()
    queue.at(10, a=WAITING)
    queue.at(11, a=WAITING, b=WAITING)
    assert queue.counts == {}
    queue.at(13, a=RUNNING, b=WAITING)
    queue.at(14, a=RUNNING, b=FINISHED)
    queue.at(99, a=RUNNING, b=FINISHED)
    assert queue.counts == {5: 2} and queue.sum_seconds == 3 + 3


def test_a_time_on_a_bound_is_below_it_and_long_ones_are_beyond_all():
    queue = Queue()
    queue.at(0, a=WAITING, b=WAITING)
    queue.at(2, a=RUNNING, b=WAITING)
    queue.at(10_000, a=RUNNING, b=RUNNING)
    assert queue.counts == {2: 1} and queue.times.durations().counts[-1] == 1


def test_pauses_and_ends_in_the_queue_do_not_count():
    queue = Queue()
    queue.at(0, a=WAITING, b=WAITING)
    queue.at(1, a=PAUSED)
    queue.at(50, a=WAITING)
    assert queue.counts == {}
    queue.at(50.1, a=RUNNING)
    assert queue.counts == {0.2: 1} and round(queue.sum_seconds, 6) == 0.1


def test_nothing_is_remembered_of_videos_that_are_gone():
    queue = Queue()
    for second in range(100):
        queue.at(second, **{f"video_{second}": WAITING})
    queue.at(100)
    assert not queue.times._since


def test_a_video_that_waits_again_counts_again():
    queue = Queue()
    for start in (0, 10):
        queue.at(start, a=WAITING)
        queue.at(start + 1, a=RUNNING)
    assert queue.counts == {1: 2}
