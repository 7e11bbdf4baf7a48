"""Many workers behind one interface: sessions stay on theirs, move when it is drained, and survive its death."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from pagedvid.engine.pace import TokenSeconds
from pagedvid.engine.requests import VideoRequest, VideoStatus
from pagedvid.errors import ConfigError, IntegrityError, WorkerError
from pagedvid.service.errors import LostWorkerError
from pagedvid.service.records import NewFork
from pagedvid.service.replica_stats import ReplicaStats, soonest, together
from pagedvid.service.replicas import Replicas
from pagedvid.service.stats import WORKING, Durations, PoolStats, WorkerStats
from pagedvid.service.worker import Worker
from tests.service.crashing import Client
from tests.service.disk_files import DiskFiles
from tests.service.fake_engine import FakeEngine, frames_of
from tests.service.listener import wait_until
from tests.service.promises import Promises
from tests.service.services import LIMITS, Service, file_of, new

NUM_REPLICAS = 3
QUEUE = Durations((1.0,), (2, 3), 7.0)
STEP_SECONDS = 0.001
"""Otherwise whole videos pass between two verbs that follow each other at once."""


class Mortal(Worker):
    """A worker that may die: its engine breaks and cannot be built again. Its engine steps while it may."""

    def __init__(self, tell, may_step: threading.Event) -> None:
        self._may_step, self._is_doomed = may_step, False
        super().__init__(self._engine, tell, checkpoints=lambda engine: DiskFiles(), build_delays_seconds=(0.0,))

    def wake(self) -> None:
        self._inbox.wake()

    def kill(self) -> None:
        self._is_doomed = True
        self.wake()

    def _engine(self) -> FakeEngine:
        if self._is_doomed:
            raise IntegrityError("killed")
        worker = self

        class Engine(FakeEngine):
            @property
            def has_work(self) -> bool:
                return worker._is_doomed or (worker._may_step.is_set() and super().has_work)

            def step(self):
                if worker._is_doomed:
                    raise IntegrityError("killed")
                time.sleep(STEP_SECONDS)
                return super().step()

        self.engine = Engine()
        return self.engine


class Many(Service):
    """A service on several replicas."""

    def _build_worker(self, tell) -> Replicas:
        self.may_step = threading.Event()
        self.may_step.set()
        self.workers: list[Mortal] = []
        self.replicas = Replicas(self._build_one, NUM_REPLICAS, tell)
        return self.replicas

    def _build_one(self, tell) -> Mortal:
        self.workers.append(Mortal(tell, self.may_step))
        return self.workers[-1]

    def let_all(self) -> None:
        """The engines step."""
        self.may_step.set()
        for worker in self.workers:
            worker.wake()

    def step(self, id: str) -> None:
        """Engines that rest step once or a few times."""
        engine = self.workers[self.place_of(id)].engine
        self.let_all()
        wait_until(lambda: engine.num_steps > 0)
        self.may_step.clear()

    def place_of(self, id: str) -> int:
        (place,) = [it.number for it in self.replicas.replicas() if id in {video.id for video in it.worker.videos}]
        return place

    def kill(self, number: int) -> None:
        """Returns when the replica is up again."""
        before = len(self.workers)
        self.replicas._replicas[number].worker.kill()
        wait_until(lambda: len(self.workers) > before and self.replicas._replicas[number].is_up)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Many]:
    made = Many(tmp_path / "data")
    yield made
    made.close()


def test_sessions_spread_and_forks_stay_with_their_source(service):
    service.may_step.clear()
    ids = [service.sessions.create(new("a", 40)).id for _ in range(6)]
    wait_until(lambda: len(service.replicas.stats().videos) == 6)
    assert Counter(map(service.place_of, ids)) == {0: 2, 1: 2, 2: 2}
    service.let_all()
    service.wait_for_chunks(ids[0], 1)
    service.may_step.clear()
    forks = service.sessions.fork(ids[0], [NewFork("b", num_frames=200)] * 3)
    assert {service.place_of(fork.id) for fork in forks} == {service.place_of(ids[0])}
    assert sum(it.num_sessions for it in service.sessions.replicas()) == 9


def test_a_replica_that_dies_is_replaced_and_its_sessions_go_on_elsewhere(service):
    ids = [service.sessions.create(new("ab"[number % 2], 160, seed=number)).id for number in range(6)]
    service.sessions.pause(ids[5])
    service.wait_for_chunks(ids[0], 3)
    service.kill(service.place_of(ids[0]))
    service.sessions.resume(ids[5])
    for number, id in enumerate(ids):
        service.wait_for(id)
        assert service.content(id) == file_of(frames_of(number, ["ab"[number % 2]] * 40))
    wait_until(lambda: not service.sessions.stats().videos)
    assert [it.num_sessions for it in service.sessions.replicas()] == [0, 0, 0]
    assert len(service.workers) == NUM_REPLICAS + 1


def test_verbs_that_fail_before_their_replica_is_known_to_be_dead_give_the_session_once_more(service, monkeypatch):
    service.may_step.clear()
    id = service.sessions.create(new("a", 40, seed=0)).id
    service.sessions.pause(id)
    unanswered: list[Future] = []

    def leave_unanswered(*args, **kwargs) -> Future:
        unanswered.append(Future())
        return unanswered[-1]

    with monkeypatch.context() as patch:
        for verb in ("submit", "pause"):
            patch.setattr(Mortal, verb, leave_unanswered)
        service.kill(service.place_of(id))
        wait_until(lambda: len(unanswered) == 2)
    submitted: list[Future] = []
    submit = Mortal.submit
    monkeypatch.setattr(
        Mortal, "submit", lambda *args, **given: submitted.append(submit(*args, **given)) or submitted[-1]
    )
    for answer in unanswered:
        answer.set_exception(WorkerError("the process has ended"))
        wait_until(lambda: service.replicas.holds(id))
    service.sessions.resume(id)
    service.let_all()
    service.wait_for(id)
    assert service.content(id) == file_of(frames_of(0, ["a"] * 10))
    assert len(submitted) == 1


def test_a_video_whose_replica_dies_at_its_end_can_be_continued(service, monkeypatch):
    checkpoint, failed = Mortal.checkpoint, []

    def fail_once(self, id: str, path: Path) -> Future:
        if failed:
            return checkpoint(self, id, path)
        failed.append(Future())
        failed[0].set_exception(WorkerError("the process has ended"))
        return failed[0]

    monkeypatch.setattr(Mortal, "checkpoint", fail_once)
    id = service.sessions.create(new("a", 8)).id
    service.wait_for(id)
    assert failed
    (fork,) = service.sessions.fork(id, [NewFork("b")])
    service.wait_for(fork.id)


def test_a_prompt_waits_for_forks_while_their_replica_dies(service):
    service.may_step.clear()
    id = service.sessions.create(new("a", 40)).id
    service.step(id)
    (fork,) = service.sessions.fork(id, [NewFork("b")])  # begins at the end of the first chunk
    with ThreadPoolExecutor(1) as pool:
        prompt = pool.submit(service.sessions.prompt, id, "c")
        service.kill(service.place_of(id))
        service.let_all()
        assert prompt.result(LIMITS.verb_seconds / 2).prompt == "c"
    for one in (id, fork.id):
        service.wait_for(one)


def test_a_verb_of_a_lost_session_says_so(service):
    service.may_step.clear()
    id = service.sessions.create(new("a", 400)).id
    replicas = service.replicas
    with replicas._lock:
        place = replicas._places[id]
        replicas._forget(id)
        replicas._lost.add(id)
    assert isinstance(replicas.pause(id).exception(5), LostWorkerError)
    replicas._places[id] = place
    assert isinstance(replicas.pause("nobody").exception(5), ConfigError)


def test_a_drained_replica_is_empty_and_may_be_filled_again(service):
    ids = [service.sessions.create(new("a", 160, seed=number)).id for number in range(6)]
    service.wait_for_chunks(ids[0], 2)
    service.sessions.drain(0)
    wait_until(lambda: service.sessions.replicas()[0].num_sessions == 0)
    assert service.sessions.replicas()[0].is_draining
    later = service.sessions.create(new("b", 8)).id
    for number, id in enumerate(ids):
        service.wait_for(id)
        assert service.content(id) == file_of(frames_of(number, ["a"] * 40))
    service.wait_for(later)
    service.sessions.refill(0)
    assert not service.sessions.replicas()[0].is_draining


def test_the_last_replica_cannot_be_drained(service):
    service.sessions.drain(0)
    service.sessions.drain(1)
    with pytest.raises(ConfigError, match="no replica but 2 takes sessions"):
        service.sessions.drain(2)
    for number in (-1, 3):
        with pytest.raises(ConfigError, match="give 0 to 2"):
            service.sessions.drain(number)


def test_one_worker_has_no_replicas(tmp_path):
    service = Service(tmp_path / "data")
    try:
        assert service.sessions.replicas() == []
        with pytest.raises(ConfigError, match="--replicas"):
            service.sessions.drain(0)
    finally:
        service.close()


def test_an_engine_that_cannot_be_built_is_an_error_at_once():
    replicas = Replicas(lambda tell: Worker(lambda: 1 // 0, tell), 2, lambda event: None)
    with pytest.raises(ZeroDivisionError):
        replicas.start()
    replicas.stop(seconds=5)
    assert isinstance(replicas.submit(VideoRequest("a", "a", 8)).exception(5), WorkerError)


@pytest.mark.parametrize("seed", range(4))
def test_every_promise_is_kept_while_replicas_die(tmp_path, seed):
    """As after crashes (test_crash.py), but with the other replicas alive."""
    service, log = Many(tmp_path / "data", LIMITS), tmp_path / "log"
    chance, is_over = random.Random(seed), threading.Event()

    def kill_some() -> None:
        while not is_over.wait(chance.uniform(0.005, 0.1)):
            service.kill(chance.randrange(NUM_REPLICAS))

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        with log.open("a") as file:
            Client(service, random.Random(seed), file).run()
        is_over.set()
        killer.join()
        promises = Promises(log)
        wait_until(lambda: all(it.state in ("completed", "failed") for it in service.sessions.list(100).records))
        promises.check_all(service, tmp_path / "data")
        assert len(service.workers) > NUM_REPLICAS
        wait_until(lambda: not service.sessions.stats().videos)
    finally:
        is_over.set()
        killer.join()
        service.close()


def test_a_new_session_goes_where_it_is_made_soonest():
    def replica(number: int, num_sessions: int, pace: float | None, free_pages: int, is_full: bool = False):
        pool = PoolStats(100, 10, free_pages, 0, 100 - free_pages, 0, 0, 0, 0, 0, 0)
        waiting = VideoStatus("a", "waiting", "p", 8, 0, 0, False, None, 0, 0, 0)
        token_seconds = None if pace is None else TokenSeconds(pace, pace)
        videos = (waiting,) if is_full else ()
        return ReplicaStats(
            number, False, num_sessions, WorkerStats(WORKING, "", 0, pool, videos, None, token_seconds, queue=QUEUE)
        )

    assert soonest([replica(0, 3, 1.0, 50), replica(1, 1, 1.0, 50)]).number == 1
    assert soonest([replica(0, 3, 0.1, 50), replica(1, 1, 1.0, 50)]).number == 0, "twice as many, ten times as fast"
    assert soonest([replica(0, 0, 1.0, 0, is_full=True), replica(1, 9, 1.0, 10)]).number == 1
    assert soonest([replica(0, 1, 1.0, 10), replica(1, 1, None, 20)]).number == 1
    both = together([replica(0, 1, 1.0, 10).worker, replica(1, 1, 3.0, 20).worker])
    assert (both.pool.num_pages, both.pool.free_pages, both.pool.page_bytes) == (200, 30, 10)
    assert both.token_seconds == TokenSeconds(1.0, 1.0)
    assert both.queue == Durations((1.0,), (4, 6), 14.0)
