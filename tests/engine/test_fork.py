"""Forks: continuations share their source's history, and equal a video that was always alone with that history."""

from __future__ import annotations

import numpy as np
import pytest

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.engine.requests import Continuation, RequestFailure
from pagedvid.errors import CapacityError, ConfigError, PromptError
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import FRAMES_PER_CHUNK, assert_all_pages_free, toy_engine
from tests.engine.verbs import alone, chunks_of, request, rest, state, steps


@pytest.mark.parametrize("codecs", ["fp32", StreamCodecs("int2", newest="bf16")])
@pytest.mark.parametrize("after", range(10))
def test_a_fork_with_nothing_new_makes_the_same_frames_as_its_source(after, codecs):
    engine = toy_engine(codecs=codecs, reproducible=True)
    engine.submit(request("a"))
    outputs = steps(engine, after)
    engine.fork("a", [Continuation("b"), Continuation("c")])
    outputs += rest(engine)
    whole = alone(request("a"), codecs=codecs, reproducible=True)
    np.testing.assert_array_equal(video_of(outputs, "a"), whole)
    first = min(chunks_of(outputs, "b"))
    assert first == -(-after // 3)
    for name in "bc":
        np.testing.assert_array_equal(video_of(outputs, name), whole[first * FRAMES_PER_CHUNK :])
    assert_all_pages_free(engine)


def test_a_fork_shares_pages_and_copies_none():
    engine = toy_engine(window=(1, 2))
    engine.submit(request("a", chunks=6))
    steps(engine, 9)
    used = engine.cache.pool.num_used_pages
    engine.fork("a", [Continuation("b"), Continuation("c")])
    assert engine.cache.pool.num_used_pages == used > 0
    pages = {video.id: (video.own_pages, video.shared_pages) for video in engine.videos()}
    assert pages == {"a": (0, used), "b": (0, used), "c": (0, used)}
    assert engine.cache.stats().pages_shared == used and engine.stats().num_forks == 2


def test_a_fork_has_its_own_prompt_seed_and_length_from_the_boundary_on():
    engine = toy_engine(reproducible=True, window=(1, 1))
    engine.submit(request("a", seed=1))
    outputs = steps(engine, 4)
    engine.fork("a", [Continuation("b", prompt="2", seed=9, num_frames=6 * FRAMES_PER_CHUNK)])
    assert state(engine, "b") == "waiting"
    outputs += rest(engine)
    np.testing.assert_array_equal(video_of(outputs, "a"), alone(request("a", seed=1), reproducible=True))
    assert chunks_of(outputs, "b") == [2, 3, 4, 5]
    mirrored = toy_engine(reproducible=True)
    mirrored.submit(request("m", seed=1))
    frames = steps(mirrored, 4)
    mirrored.fork("m", [Continuation("n", prompt="2", seed=9, num_frames=6 * FRAMES_PER_CHUNK)])
    frames += steps(mirrored, 2)
    mirrored.cancel("m")
    frames += rest(mirrored)
    np.testing.assert_array_equal(video_of(outputs, "b"), video_of(frames, "n"))
    assert_all_pages_free(engine)


def test_a_fork_of_a_finished_video_goes_on():
    engine = toy_engine(reproducible=True)
    engine.submit(request("a", chunks=2, keep=True))
    outputs = rest(engine)
    engine.fork("a", [Continuation("b", num_frames=4 * FRAMES_PER_CHUNK)])
    outputs += rest(engine)
    whole = alone(request("a", chunks=4), reproducible=True)
    np.testing.assert_array_equal(np.concatenate([video_of(outputs, "a"), video_of(outputs, "b")]), whole)
    assert state(engine, "a") == state(engine, "b") == "finished"
    engine.close()
    assert_all_pages_free(engine)


def test_a_fork_of_a_video_that_waits_waits_beside_it():
    engine = toy_engine(max_concurrent=1)
    engine.submit(request("a"))
    engine.submit(request("b", prompt="2"))
    steps(engine, 1)
    engine.fork("b", [Continuation("c", prompt="3")])
    outputs = rest(engine)
    np.testing.assert_array_equal(video_of(outputs, "c"), alone(request("c", prompt="3")))


def test_bad_continuations_are_refused_and_nothing_is_made():
    engine = toy_engine()
    engine.submit(request("a", chunks=2, keep=True))
    rest(engine)
    with pytest.raises(PromptError):
        engine.fork("a", [Continuation("b", num_frames=20), Continuation("c", prompt="x", num_frames=20)])
    with pytest.raises(ConfigError, match="give its continuation 'b' more"):
        engine.fork("a", [Continuation("b")])
    with pytest.raises(ConfigError, match="still waiting or running"):
        engine.fork("a", [Continuation("a", num_frames=20)])
    with pytest.raises(ConfigError, match="give each its own"):
        engine.fork("a", [Continuation("b", num_frames=20), Continuation("b", num_frames=20)])
    assert [video.id for video in engine.videos()] == ["a"]


def test_forks_for_which_there_are_no_pages_are_all_refused():
    engine = toy_engine(num_pages=130)
    engine.submit(request("a", chunks=6, keep=True))
    rest(engine)
    reserved = engine.cache.reserved_pages
    continuations = [Continuation(str(i), num_frames=8 * FRAMES_PER_CHUNK) for i in range(9)]
    with pytest.raises(CapacityError):
        engine.fork("a", continuations)
    assert [video.id for video in engine.videos()] == ["a"] and engine.cache.reserved_pages == reserved
    assert engine.stats().num_forks == 0


def test_a_fork_that_finds_no_pages_at_the_boundary_fails_alone():
    engine = toy_engine(num_pages=130)
    engine.submit(request("a", chunks=4))
    outputs = steps(engine, 4)
    engine.fork("a", [Continuation(str(i)) for i in range(9)])
    outputs += rest(engine)
    failures = [output for output in outputs if isinstance(output, RequestFailure)]
    assert failures and all(isinstance(failure.error, CapacityError) for failure in failures)
    assert chunks_of(outputs, "a") == [0, 1, 2, 3]
    assert_all_pages_free(engine)


def test_forks_fail_when_their_source_ends_before_the_boundary():
    engine = toy_engine()
    engine.submit(request("a"))
    steps(engine, 1)
    engine.fork("a", [Continuation("b")])
    engine.cancel("a")
    (failure,) = rest(engine)
    assert failure.request_id == "b" and "ended before its next chunk boundary" in str(failure.error)
    assert_all_pages_free(engine)


def test_a_fork_can_be_cancelled_before_it_is_made():
    engine = toy_engine()
    engine.submit(request("a"))
    steps(engine, 1)
    engine.fork("a", [Continuation("b")])
    engine.cancel("b")
    assert chunks_of(rest(engine), "b") == []
