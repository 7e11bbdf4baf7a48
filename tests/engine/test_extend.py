"""Longer videos: an extended one equals a video that was asked for in that length."""

from __future__ import annotations

import numpy as np
import pytest

from pagedvid.engine.requests import ChunkOutput
from pagedvid.errors import CapacityError, ConfigError
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import FRAMES_PER_CHUNK, assert_all_pages_free, toy_engine
from tests.engine.verbs import alone, request, rest, state, steps


@pytest.mark.parametrize("num_frames", [4, 6, 7, 8])
@pytest.mark.parametrize("longer", [9, 10, 13])
def test_a_finished_video_goes_on(num_frames, longer):
    engine = toy_engine(reproducible=True)
    engine.submit(request("a", num_frames=num_frames, keep=True))
    outputs = rest(engine)
    assert state(engine, "a") == "finished"
    engine.extend("a", longer)
    outputs += rest(engine)
    np.testing.assert_array_equal(video_of(outputs, "a"), alone(request("a", num_frames=longer), reproducible=True))
    lasts = [output.is_last for output in outputs if isinstance(output, ChunkOutput)]
    assert lasts.count(True) == 2 and lasts[-1]
    engine.cancel("a")
    assert_all_pages_free(engine)


@pytest.mark.parametrize("after", range(1, 9))
def test_a_running_video_becomes_longer(after):
    engine = toy_engine(reproducible=True)
    engine.submit(request("a", chunks=3))
    outputs = steps(engine, min(after, 7))
    engine.extend("a", 5 * FRAMES_PER_CHUNK)
    outputs += rest(engine)
    np.testing.assert_array_equal(video_of(outputs, "a"), alone(request("a", chunks=5), reproducible=True))
    assert_all_pages_free(engine)


def test_a_waiting_video_becomes_longer():
    engine = toy_engine()
    engine.submit(request("a", chunks=1))
    engine.extend("a", 2 * FRAMES_PER_CHUNK)
    assert len(video_of(rest(engine), "a")) == 2 * FRAMES_PER_CHUNK


def test_an_extension_that_does_not_fit_changes_nothing():
    engine = toy_engine(num_pages=100, window=(1, 2))
    engine.submit(request("a", chunks=2, keep=True))
    rest(engine)
    engine.submit(request("b", chunks=4, keep=True))
    rest(engine)
    reserved = engine.cache.reserved_pages
    with pytest.raises(CapacityError):
        engine.extend("a", 9 * FRAMES_PER_CHUNK)
    assert engine.cache.reserved_pages == reserved and state(engine, "a") == "finished"


def test_a_video_cannot_become_shorter_and_forgotten_ones_do_not_go_on():
    engine = toy_engine()
    engine.submit(request("a", chunks=2))
    with pytest.raises(ConfigError, match="num_frames"):
        engine.extend("a", 5)
    rest(engine)
    with pytest.raises(ConfigError, match="forgotten unless their request says keep=True"):
        engine.extend("a", 50)
