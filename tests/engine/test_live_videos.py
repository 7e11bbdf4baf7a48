"""Live videos in the engine: who runs first, what their viewers have left, and which are refused. The clock is set by
the tests; frames per second and seconds are such that a chunk of three frames is three seconds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pagedvid.engine.engine import Engine
from pagedvid.engine.pace import BLOCK_STEPS, Pace
from pagedvid.engine.requests import ChunkOutput, Continuation
from pagedvid.engine.scheduler import FAR_AHEAD_SECONDS
from pagedvid.errors import ConfigError, OverloadError
from tests.engine.toy_model import CHUNK_TOKENS, assert_all_pages_free, toy_engine
from tests.engine.verbs import STEPS_PER_CHUNK, chunks_of, request, rest, state, steps


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def one_by_one(policy="deadline", **settings):
    """An engine whose forwards hold one video each."""
    clock = Clock()
    return toy_engine(policy=policy, max_batch_tokens=1, clock=clock, **settings), clock


def live(name, chunks=4, speed=1.0, **fields):
    return request(name, chunks, live_frames_per_second=speed, **fields)


def credit(engine, name):
    return next(video.credit_seconds for video in engine.videos() if video.id == name)


def order_of_chunks(engine):
    return [output.request_id for output in rest(engine) if isinstance(output, ChunkOutput)]


@pytest.mark.parametrize(("policy", "first"), [("deadline", "live"), ("fcfs", "batch"), ("priority", "batch")])
def test_a_viewer_goes_before_an_older_throughput_job(policy, first):
    engine, _ = one_by_one(policy)
    engine.submit(request("batch", 2))
    engine.submit(live("live", 2))
    assert order_of_chunks(engine)[0] == first


def test_priority_goes_before_age():
    engine, _ = one_by_one("priority")
    engine.submit(request("low", 2))
    engine.submit(request("high", 2, priority=3))
    assert order_of_chunks(engine) == ["high", "high", "low", "low"]


def test_a_throughput_job_runs_as_soon_as_the_viewer_is_far_ahead():
    """Three seconds a chunk and a clock that stands still: 9 seconds of credit after three chunks."""
    engine, _ = one_by_one()
    engine.submit(request("batch", 2))
    engine.submit(live("live", 5))
    assert FAR_AHEAD_SECONDS < 9
    assert order_of_chunks(engine) == ["live", "live", "live", "batch", "batch", "live", "live"]


def test_the_faster_viewer_gets_more_of_the_device():
    engine, clock = one_by_one()
    engine.submit(live("slow", 20, speed=1.0))
    engine.submit(live("fast", 20, speed=3.0))
    outputs = []
    for _ in range(60):
        outputs += engine.step()
        clock.now += 0.25  # 0.75 s a chunk: the viewers want 0.25 and 0.75 of the device
    slow, fast = len(chunks_of(outputs, "slow")), len(chunks_of(outputs, "fast"))
    assert fast >= 2 * slow > 0
    assert min(credit(engine, "slow"), credit(engine, "fast")) > -0.75


def test_credit_follows_the_clock_and_the_clients_reports():
    engine, clock = one_by_one()
    engine.submit(live("a"))
    engine.submit(request("b"))
    steps(engine, 1)
    clock.now = 2.0
    assert (credit(engine, "a"), credit(engine, "b")) == (-2.0, None)
    outputs = steps(engine, STEPS_PER_CHUNK - 2)
    assert chunks_of(outputs, "a") == [0]
    assert credit(engine, "a") == 3.0
    clock.now = 4.0
    assert credit(engine, "a") == 1.0
    engine.report_played("a", 1)
    assert credit(engine, "a") == 2.0
    with pytest.raises(ConfigError, match="reports 4 frames as played, but 3 were delivered"):
        engine.report_played("a", 4)
    with pytest.raises(ConfigError, match="'b' has no viewer"):
        engine.report_played("b", 1)


def test_a_paused_video_owes_its_viewer_nothing():
    engine, clock = one_by_one()
    engine.submit(live("a"))
    steps(engine, STEPS_PER_CHUNK)
    engine.pause("a")
    clock.now = 100.0
    assert (state(engine, "a"), credit(engine, "a")) == ("paused", 0.0)
    engine.resume("a")
    clock.now = 101.0
    assert credit(engine, "a") == -1.0


def paced(engine: Engine, seconds_per_token: float) -> None:
    """Lets the engine believe that it has measured this."""
    engine.pace = Pace()
    for _ in range(BLOCK_STEPS):
        engine.pace.record(CHUNK_TOKENS, 0, CHUNK_TOKENS * seconds_per_token)


def busy_engine(share: float, **settings: object) -> Engine:
    """An engine with one live video that needs this share of the device: 2 denoise steps and a clean pass of 21 tokens
    in three seconds. It is far from its end."""
    engine, _ = one_by_one(**settings)
    engine.submit(live("first", 20))
    steps(engine, STEPS_PER_CHUNK)
    paced(engine, share * 3 / (3 * CHUNK_TOKENS))
    return engine


def test_a_live_video_that_would_make_others_stall_is_refused():
    engine = busy_engine(0.5)
    with pytest.raises(OverloadError, match=r"'second' is refused: .* at 1 frames per second needs 0.50 of the device"):
        engine.submit(live("second", 20))
    with pytest.raises(ConfigError, match="'second' is neither waiting nor running"):
        engine.cancel("second")
    engine.submit(request("second"))  # the id is free, and nobody watches this one
    engine.submit(live("slower", 20, speed=0.7))
    engine.cancel("first")
    engine.submit(live("third", 20, speed=1.0))
    rest(engine)
    assert_all_pages_free(engine)


def test_a_paused_live_video_keeps_its_share_until_it_ends():
    engine = busy_engine(0.5)
    engine.pause("first")
    with pytest.raises(OverloadError):
        engine.submit(live("second", 20))
    engine.resume("first")
    engine.cancel("first")
    engine.submit(live("second", 20))
    assert state(engine, "second") == "waiting"


def test_continuations_of_live_videos_are_admitted_like_others():
    engine = busy_engine(0.5)
    with pytest.raises(OverloadError):
        engine.fork("first", [Continuation("second")])
    assert [video.id for video in engine.videos()] == ["first"]


def test_everything_is_admitted_where_the_engine_is_told_so_or_knows_nothing():
    engine = busy_engine(0.5, live_admission="all")
    engine.submit(live("second", 20))
    engine = busy_engine(0.5)
    engine.pace = Pace()
    engine.submit(live("second", 20))
