"""Paused videos: they stop at a chunk boundary, keep their pages, and go on as if nothing had happened."""

from __future__ import annotations

import numpy as np
import pytest

from pagedvid.errors import ConfigError
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import assert_all_pages_free, toy_engine
from tests.engine.verbs import alone, chunks_of, request, rest, state, steps


@pytest.mark.parametrize("after", range(9))
def test_a_paused_video_goes_on_as_if_nothing_had_happened(after):
    engine = toy_engine(reproducible=True)
    engine.submit(request("a"))
    outputs = steps(engine, after)
    engine.pause("a")
    outputs += rest(engine)
    assert state(engine, "a") == "paused" and not engine.has_work
    assert len(chunks_of(outputs, "a")) == -(-after // 3), "the chunk that had begun is finished, and no other"
    engine.submit(request("b", prompt="2"))
    outputs += rest(engine)
    engine.resume("a")
    outputs += rest(engine)
    np.testing.assert_array_equal(video_of(outputs, "a"), alone(request("a"), reproducible=True))
    assert_all_pages_free(engine)


def test_a_video_that_is_paused_before_it_begins_waits_without_blocking_others():
    engine = toy_engine(max_concurrent=1)
    for name in "abc":
        engine.submit(request(name))
    engine.pause("b")
    assert state(engine, "b") == "paused"
    outputs = rest(engine)
    assert chunks_of(outputs, "a") == chunks_of(outputs, "c") == [0, 1, 2, 3] and chunks_of(outputs, "b") == []
    engine.resume("b")
    assert chunks_of(rest(engine), "b") == [0, 1, 2, 3]
    assert_all_pages_free(engine)


def test_a_pause_can_be_taken_back_before_it_takes_effect():
    engine = toy_engine()
    engine.submit(request("a"))
    outputs = steps(engine, 2)
    engine.pause("a")
    assert state(engine, "a") == "running"
    engine.resume("a")
    assert chunks_of(outputs + rest(engine), "a") == [0, 1, 2, 3]


def test_a_paused_video_can_be_cancelled():
    engine = toy_engine()
    engine.submit(request("a"))
    steps(engine, 4)
    engine.pause("a")
    rest(engine)
    engine.cancel("a")
    assert_all_pages_free(engine)


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "checkpoint"])
def test_unknown_ids_are_named(verb):
    with pytest.raises(ConfigError, match="'x' is neither waiting nor running"):
        getattr(toy_engine(), verb)("x")
