"""After an engine broke, another one gives the same frames, each once, whatever was asked of the videos before.

The oracle is a quiet run: the same verbs at the same places, without a fault.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from pagedvid.engine.requests import Continuation, RequestFailure, VideoRequest
from pagedvid.errors import ConfigError, IntegrityError, StateError, WorkerError
from pagedvid.service.events import ChunkEvent, RebuiltEvent, RefusedEvent
from pagedvid.service.supervised_engine import MOST_REBUILDS_IN_A_ROW, SupervisedEngine
from pagedvid.service.verbs import Verbs
from tests.service.fake_engine import ROUNDS_PER_CHUNK, FakeEngine, MemoryFiles, frames_of
from tests.service.listener import Listener
from tests.service.runs import COURSES, Run

BROKEN = IntegrityError("page 7 is in two chunks")


def assert_same(one: Run, other: Run) -> None:
    assert one.listener.failures() == other.listener.failures() == {}
    assert one.states == other.states
    assert one.frames.keys() == other.frames.keys()
    for id, frames in one.frames.items():
        assert np.array_equal(frames, other.frames[id]), id


@pytest.fixture(autouse=True, scope="module")
def few_objects_for_the_collector():
    """It runs before every engine that is built again, and would go through all of PyTorch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(("every", "is_late"), [(None, False), (None, True), (1, True), (2, False)])
@pytest.mark.parametrize("course", COURSES)
def test_an_engine_that_breaks_at_any_step(course, every, is_late):
    for begin in range(ROUNDS_PER_CHUNK):
        quiet = Run(course, begin)
        assert quiet.listener.num_rebuilds == 0 and quiet.num_steps > 14
        for step in range(quiet.num_steps):
            broken = Run(course, begin, {step: BROKEN}, every, is_late=is_late)
            assert broken.listener.num_rebuilds == 1
            assert_same(broken, quiet)


@pytest.mark.parametrize("course", ["prompts far apart", "forks", "pause and resume"])
def test_engines_that_break_one_after_another(course):
    quiet = Run(course, 4)
    for second in range(5, 12):
        broken = Run(course, 4, {4: BROKEN, second: ValueError("a bug")}, 2)
        assert broken.listener.num_rebuilds == 2
        assert_same(broken, quiet)


def test_quiet_runs_are_right():
    """From the prompts and seeds of their chunks alone."""
    frames = Run("forks", 3).frames
    assert np.array_equal(frames["other"], frames_of(9, ["2"] * 5))
    assert np.array_equal(frames["a"], frames_of(0, ["1"] * 5))
    assert np.array_equal(frames["b"], frames_of(0, ["1"], then=[(0, "3")] * 4)[4:])
    assert np.array_equal(frames["c"], frames_of(0, ["1"], then=[(5, "1")] * 5)[4:])
    assert np.array_equal(Run("two prompts", 4).frames["a"], frames_of(0, ["1"] * 2, then=[(0, "4")] * 3))
    assert len(Run("extension at the end").frames["a"]) == 28


def test_snapshots_spare_work():
    """The second engine begins at the newest copy."""
    with_copies, without = (Run(faults={12: BROKEN}, snapshot_every_chunks=every) for every in (1, None))
    assert with_copies.num_steps < without.num_steps


def supervised(build: Callable[[], FakeEngine], listener: Listener, **options) -> tuple[SupervisedEngine, Verbs]:
    options = {"build_delays_seconds": (0.0,)} | options
    engine = SupervisedEngine(build, listener, **options)
    return engine, Verbs(engine)


def run(engine: SupervisedEngine) -> None:
    while engine.has_work:
        engine.step()


class TestWhatBreaksAnEngine:
    @pytest.mark.parametrize("name", ["submit", "prompt"])
    def test_a_verb(self, name, monkeypatch):
        """It fails, and the videos go on."""
        listener = Listener()
        engine, verbs = supervised(FakeEngine, listener)
        verbs.submit(VideoRequest("a", "red", 12))
        engine.step(), engine.step()

        def break_down(*_, **__):
            raise BROKEN

        with monkeypatch.context() as patched:
            patched.setattr(engine.engine, name, break_down)
            with pytest.raises(IntegrityError):
                verbs.submit(VideoRequest("b", "red", 8)) if name == "submit" else verbs.prompt("a", "blue", False)
        run(engine)
        assert listener.num_rebuilds == 1 and list(listener.chunks) == ["a"]
        assert (listener.frames("a") == frames_of(0, ["red"] * 3)).all()

    def test_a_lost_device_that_looks_like_failures_of_videos(self, monkeypatch):
        listener = Listener()
        engine, verbs = supervised(FakeEngine, listener)
        for id in "ab":
            verbs.submit(VideoRequest(id, id, 12))
        engine.step(), engine.step()

        def lose_device():
            engine.engine.videos_by_id.clear()
            error = RuntimeError("CUDA error: an illegal memory access was encountered")
            return [RequestFailure(id, error) for id in "ab"]

        monkeypatch.setattr(engine.engine, "step", lose_device)
        run(engine)
        assert listener.failures() == {} and listener.num_rebuilds == 1
        for id in "ab":
            assert (listener.frames(id) == frames_of(0, [id] * 3)).all()

    def test_a_snapshot(self, monkeypatch):
        listener = Listener()
        engine, verbs = supervised(FakeEngine, listener, snapshot_every_chunks=1)
        verbs.submit(VideoRequest("a", "red", 12))

        def break_down(id):
            raise BROKEN

        monkeypatch.setattr(engine.engine, "checkpoint", break_down)
        run(engine)
        assert listener.num_rebuilds == 1
        assert (listener.frames("a") == frames_of(0, ["red"] * 3)).all()

    def test_no_memory_for_a_snapshot_is_no_reason(self, monkeypatch):
        def no_memory(self, id):
            raise MemoryError

        monkeypatch.setattr(FakeEngine, "checkpoint", no_memory)
        broken = Run("nothing", faults={8: BROKEN}, snapshot_every_chunks=1)
        assert broken.listener.num_rebuilds == 1
        assert_same(broken, Run())


class TestWhoBreaksEngines:
    def test_a_video_that_always_does_ends(self):
        """Neither those that wait nor those that were beside it do."""

        def fault(engine: FakeEngine) -> None:
            if any("breaks" in video.request.prompt for video in engine.videos_by_id.values() if video.num_rounds == 4):
                raise BROKEN

        listener = Listener()
        engine, verbs = supervised(lambda: FakeEngine(fault), listener)
        verbs.submit(VideoRequest("bad", "breaks", 40))
        verbs.submit(VideoRequest("beside", "red", 40))
        for number in range(3):
            verbs.submit(VideoRequest(f"waits{number}", "red", 40))
        run(engine)
        assert listener.failures()["bad"] == "WorkerError" and listener.num_rebuilds == 3
        assert (listener.frames("bad") == frames_of(0, ["breaks"])).all()
        for id in ("beside", "waits0", "waits1", "waits2"):
            assert (listener.frames(id) == frames_of(0, ["red"] * 10)).all()

    def test_a_video_that_breaks_each_engine_as_it_comes(self, monkeypatch):
        def break_down(self, snapshot):
            raise BROKEN

        listener = Listener()
        engine, verbs = supervised(FakeEngine, listener, snapshot_every_chunks=1)
        verbs.submit(VideoRequest("a", "red", 12))
        engine.step(), engine.step(), engine.step()
        verbs.submit(VideoRequest("b", "red", 12))
        monkeypatch.setattr(FakeEngine, "restore", break_down)
        with monkeypatch.context() as patched:
            patched.setattr(engine.engine, "step", lambda: 1 // 0)
            engine.step()
        run(engine)
        assert listener.failures() == {"a": "WorkerError"}
        assert (listener.frames("b") == frames_of(0, ["red"] * 3)).all()


class TestNoOtherEngine:
    def test_later_attempts(self):
        """Each waits longer; the frames are the same."""
        listener, waits, built = Listener(), [], []

        def build() -> FakeEngine:
            built.append(len(built))
            if 1 <= len(built) - 1 <= 2:
                raise RuntimeError("the device is busy")
            return FakeEngine(fault if len(built) == 1 else lambda engine: None)

        def fault(engine: FakeEngine) -> None:
            if engine.num_steps == 6:
                raise BROKEN

        def wait(seconds: float) -> bool:
            waits.append(seconds)
            return False

        engine, verbs = supervised(build, listener, build_delays_seconds=(0.0, 1.0, 5.0, 30.0), wait=wait)
        verbs.submit(VideoRequest("a", "red", 12))
        run(engine)
        assert waits == [0.0, 1.0, 5.0] and listener.num_rebuilds == 1
        assert (listener.frames("a") == frames_of(0, ["red"] * 3)).all()

    def test_none_at_all(self):
        engines = [FakeEngine(lambda engine: 1 // 0)]
        engine, verbs = supervised(engines.pop, Listener(), build_delays_seconds=(0.0, 0.0))
        verbs.submit(VideoRequest("a", "red", 12))
        with pytest.raises(WorkerError, match=r"ZeroDivisionError.*in 2 attempts; the latest ended with IndexError"):
            engine.step()
        with pytest.raises(WorkerError, match="no engine any more: ZeroDivisionError"):
            verbs.submit(VideoRequest("b", "red", 12))
        assert engine.stats("dead").reason.startswith("ZeroDivisionError")

    def test_engines_that_all_break_at_once(self, monkeypatch):
        monkeypatch.setattr(FakeEngine, "videos", lambda self: 1 // 0)
        built = []
        engine, _ = supervised(lambda: built.append(FakeEngine()) or built[-1], Listener())
        with pytest.raises(WorkerError, match="engines broke in a row"):
            engine.step()
        assert len(built) == 1 + MOST_REBUILDS_IN_A_ROW and all(each.is_closed for each in built)

    def test_it_is_told_to_give_up(self):
        engine, verbs = supervised(lambda: FakeEngine(lambda _: 1 // 0), Listener(), wait=lambda seconds: True)
        verbs.submit(VideoRequest("a", "red", 12))
        with pytest.raises(WorkerError, match="stopped before it was built again"):
            engine.step()

    def test_the_old_one_is_gone_before_the_new_one_is_built(self):
        """There is no memory for two pools."""
        old: list[weakref.ref] = []

        def build() -> FakeEngine:
            assert all(reference() is None for reference in old)
            engine = FakeEngine(fault if len(old) < 2 else lambda engine: None)
            old.append(weakref.ref(engine))
            return engine

        def fault(engine: FakeEngine) -> None:
            if engine.num_steps == 3:
                raise BROKEN

        listener = Listener()
        engine, verbs = supervised(build, listener)
        verbs.submit(VideoRequest("a", "red", 12))
        run(engine)
        assert len(old) == 3 and listener.failures() == {}


class TestWhileFramesAreMadeAgain:
    @pytest.fixture
    def behind(self):
        """An engine that has just been built again; 8 frames of "a" are missing."""
        listener = Listener()
        engine, verbs = supervised(FakeEngine, listener, checkpoints=lambda engine: MemoryFiles())
        verbs.submit(VideoRequest("a", "red", 40, keep=True, live_frames_per_second=8))
        for _ in range(6):
            engine.step()
        engine.engine.fault = lambda _: 1 // 0
        engine.step()
        assert engine.is_behind("a") and isinstance(listener.events[-2], RebuiltEvent)
        return engine, verbs, listener

    def test_its_course_is_not_changed(self, behind):
        engine, verbs, listener = behind
        changes = (
            lambda: verbs.prompt("a", "blue", False),
            lambda: verbs.extend("a", 60),
            lambda: verbs.fork("a", [Continuation("b")]),
        )
        for change in changes:
            with pytest.raises(StateError, match="being made again"):
                change()
        run(engine)
        assert (listener.frames("a") == frames_of(0, ["red"] * 10)).all()

    def test_it_pauses_afterwards(self, behind):
        engine, verbs, listener = behind
        verbs.pause("a")
        run(engine)
        assert engine.engine.videos_by_id["a"].is_paused and len(listener.frames("a")) == 8
        verbs.resume("a")
        run(engine)
        assert len(listener.frames("a")) == 40

    def test_a_pause_that_is_undone_has_never_been(self, behind):
        engine, verbs, listener = behind
        verbs.pause("a"), verbs.resume("a")
        run(engine)
        assert len(listener.frames("a")) == 40

    def test_its_viewer_plays_on(self, behind):
        engine, verbs, _ = behind
        verbs.report_played("a", 7)
        assert engine.engine.videos_by_id["a"].frames_played is None
        run(engine)
        assert engine.engine.videos_by_id["a"].frames_played == 7

    def test_it_can_be_cancelled(self, behind):
        engine, verbs, listener = behind
        verbs.cancel("a")
        assert not engine.has_work and listener.states("a")[-1] == "gone"
        with pytest.raises(ConfigError):
            verbs.pause("a")

    def test_its_forks_can_be_cancelled_that_it_has_not_made(self):
        listener = Listener()
        engine, verbs = supervised(FakeEngine, listener)
        verbs.submit(VideoRequest("a", "red", 40))
        for _ in range(4):
            engine.step()
        verbs.fork("a", [Continuation("b"), Continuation("c")])
        engine.engine.fault = lambda _: 1 // 0
        engine.step()
        assert isinstance(listener.events[-2], RebuiltEvent) and {it.id for it in engine.engine.videos()} == {"a"}
        verbs.cancel("b")
        run(engine)
        assert listener.chunks["b"] == [] and len(listener.frames("c")) == 32
        with pytest.raises(ConfigError):
            verbs.cancel("b")


def test_a_prompt_that_is_refused_is_not_asked_again():
    listener = Listener()
    engine, verbs = supervised(FakeEngine, listener)
    verbs.submit(VideoRequest("a", "red", 40))
    engine.step()
    for prompt in ("blue", "refused", "green"):
        verbs.prompt("a", prompt, False)
    for _ in range(4):
        engine.step()
    engine.engine.fault = lambda _: 1 // 0
    run(engine)
    refused = [event.prompt for event in listener.events if isinstance(event, RefusedEvent)]
    assert refused == ["refused"]
    assert (listener.frames("a") == frames_of(0, ["red"] + ["green"] * 9)).all()


def test_a_listener_that_fails_on_frames_that_are_made_again_never_sees_them():
    """Its video would end for the second time."""
    seen = []

    def on_event(event):
        if isinstance(event, ChunkEvent):
            assert (event.id, event.first_frame) not in seen
            seen.append((event.id, event.first_frame))

    steps = []

    def fault(engine: FakeEngine) -> None:
        steps.append(1)
        if len(steps) in (5, 13, 25):
            raise BROKEN

    engine, verbs = supervised(lambda: FakeEngine(fault), on_event)
    verbs.submit(VideoRequest("a", "red", 20))
    run(engine)
    assert len(seen) == 5
