"""A worker that ends is replaced, unless workers end again and again."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from pagedvid.cluster.crew import DEATHS_PER_WORKER, Crew, Lost, Started, Told
from pagedvid.errors import ConfigError, WorkerError
from pagedvid.service.stats import DEAD, WORKING, WorkerStats


class FakeWorker:
    """A worker whose answers come when the test gives them."""

    def __init__(self) -> None:
        self.started: Future = Future()
        self.told: Future = Future()
        self.is_killed = False

    def start(self) -> Future:
        return self.started

    def events(self) -> Future:
        self.told = Future()
        return self.told

    def kill(self) -> None:
        self.is_killed = True


@pytest.fixture
def workers() -> list[FakeWorker]:
    return []


@pytest.fixture
def crew(workers) -> Crew:
    def start() -> FakeWorker:
        workers.append(FakeWorker())
        return workers[-1]

    return Crew(start, 2)


def test_events_come_with_the_number_of_their_worker(crew, workers):
    workers[1].started.set_result(None)
    assert crew.wait(0) == [Started(1)]
    stats = WorkerStats(WORKING)
    workers[1].told.set_result((["a", "b"], stats))
    assert crew.wait(0) == [Told(1, ["a", "b"], stats)]
    assert crew.wait(0) == []


@pytest.mark.parametrize("how", ["process", "engine"])
def test_a_worker_that_ends_is_replaced_and_fenced_off(crew, workers, how):
    workers[0].started.set_result(None)
    crew.wait(0)
    if how == "process":
        workers[0].told.set_exception(WorkerError("gone"))
    else:
        workers[0].told.set_result(([], WorkerStats(DEAD, "gone")))
    assert crew.wait(0) == [Lost(0, "gone")]
    assert workers[0].is_killed
    assert (len(crew), len(workers)) == (2, 3)
    workers[2].started.set_result(None)
    assert crew.wait(0) == [Started(2)]


def test_an_engine_that_cannot_be_built_at_all_is_the_users_error(crew, workers):
    workers[0].started.set_exception(ConfigError("no such file"))
    with pytest.raises(ConfigError, match="no such file"):
        crew.wait(0)


def test_workers_that_end_again_and_again_are_not_replaced_for_ever(crew, workers):
    while len(crew):
        for worker in workers:
            if not worker.started.done():
                worker.started.set_exception(WorkerError("gone"))
        crew.wait(0)
    assert len(workers) == 2 * DEATHS_PER_WORKER + 1
