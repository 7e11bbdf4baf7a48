"""Swapping: idle videos leave the pool when others wait for pages, and come back as they were."""

from __future__ import annotations

import numpy as np
import pytest

from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import Continuation
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import assert_all_pages_free, toy_engine
from tests.engine.verbs import alone, chunks_of, request, rest, state, steps

SETTINGS = {"codecs": "int2", "window": (1, 2), "reproducible": True}


def pages_of_one(chunks: int = 6) -> int:
    """What one video of the tests reserves."""
    engine = toy_engine(**SETTINGS)
    engine.submit(request("a", chunks))
    engine.step()
    return engine.cache.reserved_pages


def crowded(host_memory: int | str, videos_that_fit: int = 1, **settings: object) -> Engine:
    return toy_engine(num_pages=videos_that_fit * pages_of_one() + 5, host_memory=host_memory, **SETTINGS | settings)


def test_a_paused_video_makes_room_and_comes_back_bit_for_bit():
    engine = crowded("1MiB")
    engine.submit(request("a", 6))
    outputs = steps(engine, 7)
    engine.pause("a")
    outputs += rest(engine)
    engine.submit(request("b", 6, prompt="2"))
    outputs += steps(engine, 4)
    (a, _) = engine.videos()
    assert a.state == "paused" and a.host_bytes == engine.host_memory.used_bytes > 0 and a.own_pages == 0
    assert swaps(engine) == (1, a.host_bytes, 0, 0)
    engine.resume("a")
    assert state(engine, "a") == "swapped"
    outputs += rest(engine)
    for name, prompt in (("a", "1"), ("b", "2")):
        np.testing.assert_array_equal(video_of(outputs, name), alone(request(name, 6, prompt=prompt), **SETTINGS))
    assert engine.host_memory.used_bytes == 0
    assert swaps(engine) == (1, a.host_bytes, 1, a.host_bytes)
    assert_all_pages_free(engine)


def swaps(engine: Engine) -> tuple[int, int, int, int]:
    """Streams and bytes that went out, and those that came in."""
    stats = engine.stats()
    return stats.num_swaps_out, stats.swapped_out_bytes, stats.num_swaps_in, stats.swapped_in_bytes


def test_without_host_memory_the_others_wait():
    engine = crowded(0)
    engine.submit(request("a", 6))
    steps(engine, 7)
    engine.pause("a")
    rest(engine)
    engine.submit(request("b", 6))
    outputs = rest(engine)
    assert outputs == [] and state(engine, "b") == "waiting" and not engine.has_work
    assert swaps(engine) == (0, 0, 0, 0)
    engine.resume("a")
    outputs = rest(engine)
    assert chunks_of(outputs, "b") == list(range(6)) and chunks_of(outputs, "a") == [3, 4, 5]


def test_finished_videos_that_are_kept_leave_after_paused_ones():
    engine = crowded("1MiB", videos_that_fit=2)
    engine.submit(request("a", 6, keep=True))
    rest(engine)
    engine.submit(request("b", 6))
    steps(engine, 6)
    engine.pause("b")
    rest(engine)
    engine.submit(request("c", 6))
    steps(engine, 2)
    hosted = {video.id: video.host_bytes > 0 for video in engine.videos()}
    assert hosted == {"a": False, "b": True, "c": False}
    engine.submit(request("d", 6))
    steps(engine, 2)
    assert {video.id for video in engine.videos() if video.host_bytes} == {"a", "b"}


@pytest.mark.parametrize("after", [4, 6])
def test_a_fork_for_which_there_are_no_pages_begins_in_host_memory(after):
    engine = crowded("1MiB")
    engine.submit(request("a", 6))
    outputs = steps(engine, after)
    engine.fork("a", [Continuation("b", "2", seed=5)])
    outputs += steps(engine, 6 - after + 1)
    assert state(engine, "b") == "swapped" and engine.host_memory.used_bytes > 0
    outputs += rest(engine)
    roomy = toy_engine(**SETTINGS)
    roomy.submit(request("a", 6))
    expected = steps(roomy, after)
    roomy.fork("a", [Continuation("b", "2", seed=5)])
    expected += rest(roomy)
    for name in "ab":
        np.testing.assert_array_equal(video_of(outputs, name), video_of(expected, name))
    assert engine.host_memory.used_bytes == 0
    assert_all_pages_free(engine)


def test_a_swapped_video_can_be_cancelled_snapshotted_forked_and_extended():
    engine = crowded("1MiB")
    engine.submit(request("a", 6))
    outputs = steps(engine, 9)
    engine.pause("a")
    rest(engine)
    engine.submit(request("b", 6, prompt="2"))
    steps(engine, 1)
    snapshot = engine.checkpoint("a")
    from pagedvid.engine.requests import Continuation

    engine.fork("a", [Continuation("c")])
    engine.extend("a", 24)
    engine.cancel("b")
    engine.resume("a")
    outputs += rest(engine)
    whole = alone(request("a", 8), **SETTINGS)
    np.testing.assert_array_equal(video_of(outputs, "a"), whole)
    np.testing.assert_array_equal(video_of(outputs, "c"), alone(request("c", 6), **SETTINGS)[9:])
    engine.restore(snapshot)
    engine.cancel("a")
    assert engine.host_memory.used_bytes == 0
    assert_all_pages_free(engine)


def test_a_prompt_with_recache_for_a_swapped_video_counts_from_the_chunk_that_it_returns_with():
    videos = []
    for is_swapped in (False, True):
        engine = crowded("1MiB", videos_that_fit=2)
        engine.submit(request("a", 6))
        outputs = steps(engine, 9)
        engine.pause("a")
        rest(engine)
        if is_swapped:
            engine.submit(request("b", 6))
            engine.submit(request("c", 6))
            steps(engine, 1)
            assert next(video for video in engine.videos() if video.id == "a").host_bytes
            engine.prompt("a", "2", recache=True)
            rest(engine)
        else:
            engine.prompt("a", "2", recache=True)
        engine.resume("a")
        videos.append(video_of(outputs + rest(engine), "a"))
    np.testing.assert_array_equal(*videos)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_live_video_that_is_far_ahead_makes_room_and_returns_in_time():
    clock = Clock()
    engine = crowded("1MiB", clock=clock, policy="deadline")
    engine.submit(request("live", 6, live_frames_per_second=0.1))
    outputs = steps(engine, 4)
    engine.submit(request("batch", 6, prompt="2"))
    outputs += steps(engine, 5)
    assert state(engine, "live") == "swapped" and state(engine, "batch") == "running"
    outputs += rest(engine)
    np.testing.assert_array_equal(video_of(outputs, "live"), alone(request("live", 6), **SETTINGS))
    np.testing.assert_array_equal(video_of(outputs, "batch"), alone(request("batch", 6, prompt="2"), **SETTINGS))
    assert_all_pages_free(engine)


@pytest.mark.parametrize("host_memory", ["1KiB", "10KiB"])
def test_a_full_host_memory_refuses_and_loses_nothing(host_memory):
    engine = crowded(host_memory)
    engine.submit(request("a", 6))
    outputs = steps(engine, 9)
    engine.pause("a")
    rest(engine)
    engine.submit(request("b", 6, prompt="2"))
    steps(engine, 2)
    assert engine.host_memory.used_bytes <= engine.host_memory.num_bytes
    engine.resume("a")
    outputs += rest(engine)
    np.testing.assert_array_equal(video_of(outputs, "a"), alone(request("a", 6), **SETTINGS))
