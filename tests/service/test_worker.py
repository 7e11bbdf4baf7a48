"""One engine on one thread: verbs in through futures, events out, and no error of one video reaches another."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from pagedvid.engine.requests import Continuation, EngineOutput, VideoRequest
from pagedvid.errors import CapacityError, ConfigError, PromptError, WorkerError
from pagedvid.service.events import ChunkEvent, FailureEvent, StateEvent
from pagedvid.service.last_wish import LastWish, write_all
from pagedvid.service.recovery import Checkpoint
from pagedvid.service.stats import DEAD, REBUILDING, STOPPED, WORKING
from pagedvid.service.supervised_engine import SupervisedEngine
from pagedvid.service.verbs import Verbs
from pagedvid.service.worker import Worker
from tests.service.fake_engine import FakeEngine, MemoryFiles, frames_of
from tests.service.listener import WAIT_SECONDS, Listener, wait_until


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def start(listener: Listener) -> Iterator[Callable[..., Worker]]:
    """start(build, listener) -> a worker that is stopped at the end of the test."""
    workers: list[Worker] = []

    def begin(build=FakeEngine, on_event=listener, **options) -> Worker:
        workers.append(Worker(build, on_event, **options))
        workers[-1].start()
        return workers[-1]

    yield begin
    for worker in workers:
        worker.stop()


def slow_engine() -> FakeEngine:
    """Its videos are not over before a test has come to them."""
    return FakeEngine(lambda engine: time.sleep(0.002))


def result_of(future: Future) -> object:
    return future.result(WAIT_SECONDS)


def test_videos_come_out_as_events(start, listener):
    worker = start()
    futures = [worker.submit(VideoRequest(id, id, 10, seed=seed)) for seed, id in enumerate("abc")]
    assert [result_of(future) for future in futures] == [None] * 3
    listener.wait_for_end(*"abc")
    for seed, id in enumerate("abc"):
        assert (listener.frames(id) == frames_of(seed, [id] * 3, 10)).all()
        assert [chunk.chunk_index for chunk in listener.chunks[id]] == [0, 1, 2]
        assert [chunk.is_last for chunk in listener.chunks[id]] == [False, False, True]
        assert listener.states(id) == ["waiting", "running", "gone"]
    assert listener.failures() == {}
    assert sum(worker.stats().queue.counts) == 3


def test_events_are_told_on_the_thread_of_the_worker(start, listener):
    threads = set()
    worker = start(on_event=lambda event: (threads.add(threading.current_thread().name), listener(event)))
    worker.submit(VideoRequest("a", "red", 8))
    listener.wait_for_end("a")
    assert threads == {"pagedvid-worker"}


def test_a_listener_that_hears_of_a_state_finds_it_in_the_numbers(start, listener):
    shown = []

    def on_event(event):
        if isinstance(event, StateEvent):
            states = {video.id: video.state for video in worker.stats().videos}
            shown.append((event.state, states.get(event.id, "gone")))
        listener(event)

    worker = start(on_event=on_event)
    worker.submit(VideoRequest("a", "red", 8))
    listener.wait_for_end("a")
    assert shown == [("waiting", "waiting"), ("running", "running"), ("gone", "gone")]


def test_errors_of_verbs_are_those_of_the_engine_and_reach_nobody_else(start, listener):
    worker = start()
    worker.submit(VideoRequest("fine", "red", 40))
    refused = {
        PromptError: worker.submit(VideoRequest("a", "unknown", 8)),
        CapacityError: worker.submit(VideoRequest("b", "red", 2000)),
        ConfigError: worker.submit(VideoRequest("fine", "red", 8)),
    }
    for error, future in refused.items():
        assert type(future.exception(WAIT_SECONDS)) is error
    for verb in (worker.cancel, worker.pause, worker.resume):
        with pytest.raises(ConfigError, match="'nobody' is neither"):
            result_of(verb("nobody"))
    listener.wait_for_end("fine")
    assert (listener.frames("fine") == frames_of(0, ["red"] * 10)).all()


def test_what_would_be_refused_is_known_before_it_is_submitted(start, listener):
    worker = start()
    worker.submit(VideoRequest("there", "red", 8))
    worker.pause("there")
    requests = [VideoRequest("a", "unknown", 8), VideoRequest("there", "red", 8), VideoRequest("fine", "red", 8)]
    refusals = result_of(worker.refusals(requests))
    assert {id: type(error) for id, error in refusals.items()} == {"a": PromptError, "there": ConfigError}
    assert [video.id for video in worker.stats().videos] == ["there"]
    assert listener.states("fine") == [] and listener.failures() == {}


def test_steps_are_taken_as_the_caller_likes(start, listener):
    engines, steps = [FakeEngine()], []

    def take_step(engine: FakeEngine) -> list[EngineOutput]:
        steps.append((engine, threading.current_thread().name))
        return engine.step()

    worker = start(lambda: engines[0], take_step=take_step)
    worker.submit(VideoRequest("a", "red", 8))
    listener.wait_for_end("a")
    assert set(steps) == {(engines[0], "pagedvid-worker")} and len(steps) == engines[0].num_steps


def test_a_video_that_fails_leaves_the_others_alone(start, listener):
    worker = start()
    worker.submit(VideoRequest("bad", "fails@1", 12))
    worker.submit(VideoRequest("fine", "red", 12))
    listener.wait_for_end("bad", "fine")
    assert listener.failures() == {"bad": "FloatingPointError"}
    assert (listener.frames("bad") == frames_of(0, ["fails@1"])).all()
    assert (listener.frames("fine") == frames_of(0, ["red"] * 3)).all()
    assert worker.stats().num_rebuilds == 0


@pytest.mark.parametrize("kind", [ChunkEvent, StateEvent])
def test_a_listener_that_raises_ends_the_video_of_its_event(start, listener, kind):
    def on_event(event):
        listener(event)
        if isinstance(event, kind) and event.id == "bad":
            raise OSError(28, "No space left on device")

    engine = FakeEngine()
    worker = start(lambda: engine, on_event)
    worker.submit(VideoRequest("bad", "red", 12))
    worker.submit(VideoRequest("fine", "blue", 12))
    listener.wait_for_end("fine")
    assert listener.failures() == {"bad": "OSError"}
    assert (listener.frames("fine") == frames_of(0, ["blue"] * 3)).all()
    assert len(listener.chunks["bad"]) == (kind is ChunkEvent)
    assert engine.videos_by_id == {} and worker.stats().state == WORKING


def test_a_listener_that_always_raises_stops_nobody(start):
    events = []

    def on_event(event):
        events.append(event)
        raise ZeroDivisionError

    worker = start(on_event=on_event)
    for id in "ab":
        result_of(worker.submit(VideoRequest(id, "red", 8)))
    wait_until(lambda: sum(isinstance(event, FailureEvent) for event in events) == 2)
    assert worker.stats().videos == ()


def test_verbs_of_one_caller_are_carried_out_in_order(start, listener):
    worker = start()
    for number in range(200):
        worker.submit(VideoRequest("a", "red", 400, seed=number))
        cancelled = worker.cancel("a")
    assert result_of(cancelled) is None
    assert listener.failures() == {}


def test_stats_show_a_verb_once_its_future_is_done(start):
    worker = start(slow_engine)
    for id in "ab":
        result_of(worker.submit(VideoRequest(id, "red", 800)))
        result_of(worker.pause(id))
    wait_until(lambda: [video.state for video in worker.stats().videos] == ["paused", "paused"])
    stats = worker.stats()
    pool = stats.pool
    assert (pool.num_pages, pool.page_bytes) == (100, 4608)
    assert (pool.free_pages, pool.reserved_pages, pool.used_pages) == (96, 2, 2)
    assert stats.state == WORKING and stats.engine.num_running == 2
    result_of(worker.cancel("a"))
    assert [video.id for video in worker.stats().videos] == ["b"]


def test_an_idle_worker_sleeps_and_wakes(start, listener):
    num_reads = 0

    class Counted(FakeEngine):
        @property
        def has_work(self) -> bool:
            nonlocal num_reads
            num_reads += 1
            return super().has_work

    worker = start(Counted)
    worker.submit(VideoRequest("a", "red", 8))
    listener.wait_for_end("a")
    time.sleep(0.05)
    before = num_reads
    time.sleep(0.2)
    assert num_reads == before
    worker.submit(VideoRequest("b", "red", 8))
    listener.wait_for_end("b")


def test_any_number_of_callers(start, listener):
    worker = start()

    def call(name: str) -> None:
        for number in range(20):
            result_of(worker.submit(VideoRequest(f"{name}{number}", name, 8, seed=number)))
            if number % 3 == 0:
                worker.cancel(f"{name}{number}").exception(WAIT_SECONDS)

    callers = [threading.Thread(target=call, args=(name,)) for name in "abcdef"]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    whole = [(name, number) for name in "abcdef" for number in range(20) if number % 3]
    listener.wait_for_end(*(f"{name}{number}" for name, number in whole))
    for name, number in whole:
        assert (listener.frames(f"{name}{number}") == frames_of(number, [name] * 2)).all()
    assert listener.failures() == {}


def test_forks_begin_where_their_source_is(start, listener):
    worker = start()
    worker.submit(VideoRequest("a", "red", 8, keep=True))
    wait_until(lambda: "finished" in listener.states("a"))
    result_of(worker.fork("a", [Continuation("b", "blue", 7, 16), Continuation("c", num_frames=12)]))
    wait_until(lambda: all("finished" in listener.states(id) for id in "bc"))
    assert [chunk.first_frame for chunk in listener.chunks["b"]] == [8, 12]
    assert [chunk.first_frame for chunk in listener.chunks["c"]] == [8]
    assert (listener.frames("c") == frames_of(0, ["red"] * 3)[8:]).all()
    assert (listener.frames("b") == frames_of(0, ["red"] * 2, then=[(7, "blue")] * 2)[8:]).all()


class TestCheckpoints:
    def test_another_worker_goes_on(self, start, listener):
        files, path = MemoryFiles(), Path("a")
        worker = start(slow_engine, checkpoints=lambda engine: files)
        result_of(worker.submit(VideoRequest("a", "red", 400)))
        wait_until(lambda: len(listener.chunks["a"]) > 1)
        saved = result_of(worker.checkpoint("a", path))
        worker.stop()
        later = Listener()
        assert result_of(start(on_event=later, checkpoints=lambda engine: files).restore(path)) == "a"
        later.wait_for_end("a")
        first = later.chunks["a"][0].first_frame
        assert saved == Checkpoint("a", "red", 400, first)
        assert first >= 8 and (later.frames("a") == frames_of(0, ["red"] * 100)[first:]).all()

    def test_a_full_disk_costs_the_checkpoint_only(self, start, listener):
        worker = start(checkpoints=lambda engine: MemoryFiles())
        worker.submit(VideoRequest("a", "red", 40))
        with pytest.raises(OSError, match="No space left"):
            result_of(worker.checkpoint("a", Path("full")))
        with pytest.raises(ConfigError, match="is no checkpoint"):
            result_of(worker.restore(Path("nothing")))
        listener.wait_for_end("a")
        assert listener.failures() == {}

    def test_without_files_it_is_refused(self, start):
        with pytest.raises(ConfigError, match="give it `checkpoints`"):
            result_of(start().restore(Path("a")))


class TestStop:
    def test_pending_and_later_verbs_fail(self, start):
        is_in_step, may_go_on = threading.Event(), threading.Event()

        def wait(engine: FakeEngine) -> None:
            is_in_step.set()
            may_go_on.wait(WAIT_SECONDS)

        worker = start(lambda: FakeEngine(wait))
        worker.submit(VideoRequest("a", "red", 8))
        assert is_in_step.wait(WAIT_SECONDS)
        pending = worker.cancel("a")
        threading.Timer(0.1, may_go_on.set).start()
        worker.stop(seconds=WAIT_SECONDS)
        for future in (pending, worker.submit(VideoRequest("b", "red", 8))):
            with pytest.raises(WorkerError, match="was stopped"):
                future.result(0)
        assert worker.stats().state == STOPPED

    def test_a_step_that_takes_too_long(self, start):
        is_in_step, may_go_on = threading.Event(), threading.Event()
        engine = FakeEngine(lambda _: (is_in_step.set(), may_go_on.wait(WAIT_SECONDS)))
        worker = start(lambda: engine)
        worker.submit(VideoRequest("a", "red", 8))
        is_in_step.wait(WAIT_SECONDS)
        pending = worker.cancel("a")
        with pytest.raises(WorkerError, match=r"not ended within 0\.05 seconds"):
            worker.stop(seconds=0.05)
        assert isinstance(pending.exception(0), WorkerError)
        may_go_on.set()
        wait_until(lambda: engine.is_closed)

    def test_checkpoints_of_all_videos(self, start, listener, tmp_path):
        files = MemoryFiles()
        worker = start(slow_engine, checkpoints=lambda engine: files)
        worker.submit(VideoRequest("kept", "red", 8, keep=True))
        wait_until(lambda: "finished" in listener.states("kept"))
        for id in ("a", "../b", "c"):
            worker.submit(VideoRequest(id, "red", 999))
        result_of(worker.pause("c"))
        written = worker.stop(tmp_path)
        assert set(written) == {"a", "../b", "c", "kept"} and set(written.values()) == set(files.files)
        assert all(path.parent == tmp_path for path in written.values())
        assert {files.files[path].request.id for path in written.values()} == set(written)
        made = sum(len(chunk.frames) for chunk in listener.chunks["a"])
        assert files.files[written["a"]].num_output_frames == made

    def test_no_checkpoint_is_begun_when_the_time_is_over(self, tmp_path):
        files = MemoryFiles()
        supervised = SupervisedEngine(FakeEngine, Listener(), checkpoints=lambda engine: files)
        verbs = Verbs(supervised)
        verbs.submit(VideoRequest("a", "red", 8))
        assert write_all(supervised, verbs, LastWish(tmp_path, deadline=0.0)) == files.files == {}
        assert set(write_all(supervised, verbs, LastWish(tmp_path, deadline=float("inf")))) == {"a"}

    def test_twice(self, start):
        worker = start()
        assert worker.stop() == worker.stop() == {}

    def test_from_a_listener(self, start, listener):
        """It cannot wait for itself."""
        worker = start(on_event=lambda event: worker.stop())
        worker.submit(VideoRequest("a", "red", 8))
        wait_until(lambda: worker.stats().state == STOPPED)

    def test_never_started(self):
        worker = Worker(FakeEngine, Listener())
        future = worker.submit(VideoRequest("a", "red", 8))
        assert worker.stop() == {}
        assert isinstance(future.exception(0), WorkerError)


class TestAnEngineThatBreaks:
    def test_nobody_notices(self, start, listener):
        engines = [FakeEngine(), FakeEngine(lambda engine: 1 // (6 - engine.num_steps))]
        worker = start(engines.pop)
        for id in "ab":
            worker.submit(VideoRequest(id, id, 20))
        listener.wait_for_end(*"ab")
        assert worker.stats().num_rebuilds == listener.num_rebuilds == 1
        for id in "ab":
            assert (listener.frames(id) == frames_of(0, [id] * 5)).all()

    def test_what_changes_a_course_waits_until_frames_are_made_again(self, start, listener):
        """The prompt comes while the second engine is built, and takes effect behind the chunks that were given out."""
        is_building, may_go_on = threading.Event(), threading.Event()
        engines = [FakeEngine(), FakeEngine(lambda engine: 1 // (9 - engine.num_steps))]

        def build() -> FakeEngine:
            if len(engines) == 1:
                is_building.set()
                may_go_on.wait(WAIT_SECONDS)
            return engines.pop()

        worker = start(build)
        worker.submit(VideoRequest("a", "red", 40))
        assert is_building.wait(WAIT_SECONDS) and worker.stats().state == REBUILDING
        prompted = worker.prompt("a", "blue")
        may_go_on.set()
        assert result_of(prompted) is None
        listener.wait_for_end("a")
        assert len(listener.chunks["a"]) == 10 and listener.failures() == {}
        assert (listener.frames("a") == frames_of(0, ["red"] * 3, then=[(0, "blue")] * 7)).all()

    def test_none_can_be_built(self, start, listener):
        engines = [FakeEngine(lambda engine: 1 // (6 - engine.num_steps))]
        worker = start(engines.pop, build_delays_seconds=(0.0, 0.01))
        worker.submit(VideoRequest("a", "red", 20))
        wait_until(lambda: worker.stats().state == DEAD)
        for verb in (worker.cancel, worker.pause):
            with pytest.raises(WorkerError, match="could not be built again in 2 attempts"):
                result_of(verb("a"))
        assert "ZeroDivisionError" in worker.stats().reason and listener.failures() == {}
        assert worker.stop() == {} and worker.stats().state == DEAD

    def test_stopping_does_not_wait_for_the_next_attempt(self, start):
        engines = [FakeEngine(lambda engine: 1 // 0)]
        worker = start(engines.pop, build_delays_seconds=(0.0, 3600.0))
        worker.submit(VideoRequest("a", "red", 20))
        wait_until(lambda: worker.stats().state == REBUILDING)
        worker.stop(seconds=WAIT_SECONDS)
        assert worker.stats().state == STOPPED


def test_snapshots_every_zero_chunks():
    with pytest.raises(ConfigError, match="snapshot_every_chunks"):
        Worker(FakeEngine, Listener(), snapshot_every_chunks=0)


def test_an_engine_that_cannot_be_built_the_first_time():
    worker = Worker(lambda: 1 // 0, Listener())
    future = worker.submit(VideoRequest("a", "red", 8))
    with pytest.raises(ZeroDivisionError):
        worker.start()
    assert worker.stats().state == DEAD and "division" in worker.stats().reason
    assert isinstance(future.exception(WAIT_SECONDS), WorkerError)


def test_a_worker_keeps_no_process_alive():
    script = """
import time
from pagedvid.engine.requests import VideoRequest
from pagedvid.service.worker import Worker
from tests.service.fake_engine import FakeEngine
worker = Worker(lambda: FakeEngine(lambda engine: time.sleep(3600)), print)
worker.start()
worker.submit(VideoRequest("a", "red", 8))
time.sleep(0.1)
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, timeout=60).returncode == 0
