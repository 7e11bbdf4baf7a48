"""A worker in another process that is used like one of this process; the process is a stand-in."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from queue import Queue

import pytest

from pagedvid.cluster.actor_worker import ActorWorker
from pagedvid.cluster.remote_worker import RemoteVerbs
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import WorkerError
from pagedvid.service.events import StateEvent
from pagedvid.service.stats import DEAD, STARTING, STOPPED, WORKING, WorkerStats
from tests.service.listener import wait_until

WORKS = WorkerStats(WORKING)


def done(result: object = None, error: Exception | None = None) -> Future:
    future: Future = Future()
    future.set_exception(error) if error else future.set_result(result)
    return future


class StandIn(RemoteVerbs):
    """Answers at once; `events` gives what was put into `told`: (events, stats), or an error."""

    def __init__(self, start_error: Exception | None = None) -> None:
        self.start_error, self.asked, self.is_killed = start_error, [], False
        self.told: Queue = Queue()

    def start(self) -> Future:
        return done(error=self.start_error)

    def events(self) -> Future:
        told = self.told.get()
        return done(error=told) if isinstance(told, Exception) else done(told)

    def stop(self, checkpoint_folder=None, *, seconds: float) -> Future:
        self.told.put(([], replace(WORKS, state=STOPPED)))
        return done({})

    def kill(self) -> None:
        self.is_killed = True

    def _ask(self, verb: str, *args, **kwargs) -> Future:
        self.asked.append((verb, args, kwargs))
        return done(verb)


@pytest.fixture
def remote() -> StandIn:
    return StandIn()


def test_verbs_go_there_and_events_come_back_with_the_numbers(remote):
    heard: list = []
    seen: list = []  # the numbers when the event came
    worker = ActorWorker(lambda: remote, lambda event: (seen.append(worker.stats()), heard.append(event)))
    assert worker.stats().state == STARTING
    worker.start()
    request = VideoRequest("a", "red", 8)
    assert worker.submit(request, frames_given=4).result(5) == "submit"
    assert remote.asked == [("submit", (request,), {"frames_given": 4})]
    event = StateEvent("a", "running")
    remote.told.put(([event], WORKS))
    wait_until(lambda: heard == [event] and seen == [WORKS])
    worker.stop(seconds=5)
    assert worker.stats().state == STOPPED and remote.is_killed


@pytest.mark.parametrize("end", [WorkerError("the process is gone"), ([], WorkerStats(DEAD, "the process is gone"))])
def test_a_process_that_ends_is_a_dead_worker(remote, end):
    worker = ActorWorker(lambda: remote, print)
    worker.start()
    remote.told.put(end)
    wait_until(lambda: worker.stats().state == DEAD)
    assert worker.stats().reason == "the process is gone"
    assert isinstance(worker.pause("a").exception(5), WorkerError)
    wait_until(lambda: remote.is_killed)
    worker.stop(seconds=5)
    assert worker.stats().state == DEAD


def test_a_worker_that_is_not_heard_any_more_is_dead(remote):
    worker = ActorWorker(lambda: remote, lambda event: 1 // 0)
    worker.start()
    remote.told.put(([StateEvent("a", "running")], WORKS))
    wait_until(lambda: worker.stats().state == DEAD and remote.is_killed)
    assert worker.stats().reason.startswith("its events cannot be heard: ZeroDivisionError")


def test_an_engine_that_cannot_be_built_is_raised_and_leaves_no_process():
    remote = StandIn(MemoryError("no room"))
    worker = ActorWorker(lambda: remote, print)
    with pytest.raises(MemoryError):
        worker.start()
    assert worker.stats().state == DEAD and remote.is_killed
    assert isinstance(worker.cancel("a").exception(5), WorkerError)


def test_before_it_is_started_nothing_can_be_asked(remote):
    assert "has not been started" in str(ActorWorker(lambda: remote, print).pause("a").exception(5))
