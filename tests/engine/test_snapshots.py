"""Snapshots: a video that is taken up by another engine goes on to the last bit as if it had never stopped."""

from __future__ import annotations

import numpy as np
import pytest

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.engine.requests import Continuation
from pagedvid.errors import CapacityError, ConfigError
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import ToyModel, assert_all_pages_free, toy_engine
from tests.engine.verbs import alone, request, rest, state, steps

CODECS = ["fp32", "int2", StreamCodecs("int4/int2", sink="int8", newest="bf16")]


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("branches", [("cond",), ("cond", "uncond")])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 8, 10])
def test_a_video_goes_on_in_another_engine(after, branches, codecs):
    settings = {"codecs": codecs, "reproducible": True, "window": (1, 2)}
    first = toy_engine(ToyModel(branches=branches), **settings)
    first.submit(request("a", chunks=5))
    outputs = steps(first, after)
    snapshot = first.checkpoint("a")
    first.close()
    second = toy_engine(ToyModel(branches=branches), **settings)
    second.restore(snapshot)
    outputs += rest(second)
    expected = alone(request("a", chunks=5), model=ToyModel(branches=branches), **settings)
    np.testing.assert_array_equal(video_of(outputs, "a"), expected)
    assert_all_pages_free(second)


def test_a_snapshot_changes_nothing_and_can_be_taken_up_many_times():
    engine = toy_engine(reproducible=True)
    engine.submit(request("a"))
    outputs = steps(engine, 4)
    snapshot = engine.checkpoint("a")
    rests = [rest(engine)]
    for _ in range(2):
        engine.restore(snapshot)
        rests.append(rest(engine))
    for one in rests:
        np.testing.assert_array_equal(video_of(outputs + one, "a"), alone(request("a"), reproducible=True))


def test_a_finished_video_is_taken_up_and_extended():
    engine = toy_engine(reproducible=True)
    engine.submit(request("a", num_frames=7, keep=True))
    outputs = rest(engine)
    snapshot = engine.checkpoint("a")
    engine.cancel("a")
    engine.restore(snapshot)
    engine.extend("a", 12)
    outputs += rest(engine)
    np.testing.assert_array_equal(video_of(outputs, "a"), alone(request("a", num_frames=12), reproducible=True))
    assert state(engine, "a") == "finished"


def test_an_id_that_is_in_use_is_refused():
    engine = toy_engine()
    engine.submit(request("a"))
    with pytest.raises(ConfigError, match="still waiting or running"):
        engine.restore(engine.checkpoint("a"))


def test_a_snapshot_that_never_fits_is_refused():
    engine = toy_engine(window=(1, 2))
    engine.submit(request("a", chunks=9))
    steps(engine, 20)
    with pytest.raises(CapacityError, match="at its peak"):
        toy_engine(window=(1, 2), num_pages=20).restore(engine.checkpoint("a"))


@pytest.mark.parametrize("after", [1, 4, 6])
@pytest.mark.parametrize("recache", [False, True])
def test_changes_of_a_video_that_was_taken_up_and_has_not_begun_wait_for_its_boundary(after, recache):
    videos = []
    for is_moved in (False, True):
        engine = toy_engine(reproducible=True)
        engine.submit(request("a"))
        outputs = steps(engine, after)
        if is_moved:
            snapshot = engine.checkpoint("a")
            engine = toy_engine(reproducible=True)
            engine.restore(snapshot)
        engine.fork("a", [Continuation("b", "3", seed=5)])
        engine.prompt("a", "2", recache=recache)
        engine.fork("a", [Continuation("c")])
        assert [video.id for video in engine.videos()].count("b") == 1
        outputs += rest(engine)
        videos.append([video_of(outputs, name) for name in "abc"])
    for undisturbed, moved in zip(*videos, strict=True):
        np.testing.assert_array_equal(undisturbed, moved)


def test_a_cancelled_video_that_has_not_begun_takes_its_forks_with_it():
    engine = toy_engine(reproducible=True)
    engine.submit(request("a"))
    steps(engine, 1)
    snapshot = engine.checkpoint("a")
    engine.cancel("a")
    engine.restore(snapshot)
    engine.fork("a", [Continuation("b")])
    engine.cancel("a")
    (failure,) = rest(engine)
    assert failure.request_id == "b" and engine.videos() == ()
