"""Engines in lockstep, here in one process: what rank 0 tells, a second engine does after it."""

from __future__ import annotations

import inspect
import pickle
from collections import deque
from functools import partial
from typing import Any

import numpy as np
import pytest

from pagedvid.engine.engine import Engine
from pagedvid.engine.lockstep import LeadingEngine, follow
from pagedvid.engine.requests import Continuation
from pagedvid.errors import ConfigError, IntegrityError, RankError, WorkerError
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import FRAMES_PER_CHUNK, assert_all_pages_free, toy_engine
from tests.engine.verbs import request, rest, steps

QUERIES = {"run", "has_work", "videos", "stats", "report_played"}
"""What changes nothing, loops over `step`, or is about live videos."""


class Line:
    """Told by one, heard by another, as bytes."""

    rank = 1

    def __init__(self) -> None:
        self.told: deque[bytes] = deque()

    def tell(self, told: Any) -> None:
        self.told.append(pickle.dumps(told))

    def end(self) -> None:
        self.tell(None)

    def hear(self) -> Any:
        return pickle.loads(self.told.popleft())


class Listening(Engine):
    """Remembers what came of its steps."""

    def step(self):
        outputs = super().step()
        self.__dict__.setdefault("outputs", []).extend(outputs)
        return outputs


@pytest.fixture
def line() -> Line:
    return Line()


def leading(line: Line, **settings: Any) -> LeadingEngine:
    plain = toy_engine(**settings)
    return LeadingEngine(plain.model, plain.cache, plain.window, num_denoise_steps=plain.num_denoise_steps, leader=line)


def following(**settings: Any) -> Listening:
    plain = toy_engine(**settings)
    return Listening(plain.model, plain.cache, plain.window, num_denoise_steps=plain.num_denoise_steps)


def test_every_verb_of_an_engine_is_led():
    public = {name for name, _ in inspect.getmembers(Engine) if not name.startswith("_")}
    assert public - QUERIES <= set(vars(LeadingEngine))


def test_a_follower_makes_the_same_videos(line):
    engine = leading(line)
    engine.check(request("a", 4))
    engine.submit(request("a", 4))
    outputs = steps(engine, 5)
    engine.submit(request("gone", 2))
    engine.fork("a", [Continuation("twin", prompt="3")])
    engine.prompt("a", "2")
    engine.cancel("gone")
    outputs += steps(engine, 3)
    engine.pause("a")
    outputs += rest(engine)
    engine.resume("a")
    engine.extend("a", 5 * FRAMES_PER_CHUNK)
    snapshot = engine.checkpoint("a")
    engine.cancel("a")
    engine.restore(snapshot)
    outputs += rest(engine)
    engine.close()
    other = following()
    follow(other, line)
    assert not line.told
    for name, num_chunks in (("a", 5), ("twin", 2)):  # the twin's first two were given out by its source
        video = video_of(outputs, name)
        assert len(video) == num_chunks * FRAMES_PER_CHUNK
        np.testing.assert_array_equal(video_of(other.outputs, name), video)
    assert_all_pages_free(other)


def test_refusals_are_the_same_on_all_ranks(line):
    """They stop nobody."""
    engine = leading(line)
    engine.submit(request("a"))
    for refused in (lambda: engine.cancel("nobody"), lambda: engine.submit(request("a"))):
        with pytest.raises(ConfigError):
            refused()
    outputs = rest(engine)
    engine.close()
    other = following()
    follow(other, line)
    np.testing.assert_array_equal(video_of(other.outputs, "a"), video_of(outputs, "a"))


def test_a_rank_that_comes_to_something_else_stops(line):
    engine = leading(line)
    engine.submit(request("a"))
    rest(engine)
    engine.close()
    other = following(num_denoise_steps=1)
    with pytest.raises(RankError, match=r"rank 1 came to .*, rank 0 to .*all ranks need the same versions, files"):
        follow(other, line)


def test_live_videos_are_refused(line):
    engine = leading(line)
    with pytest.raises(ConfigError, match="'a' is live; several devices make videos together only where nobody plays"):
        engine.submit(request("a", live_frames_per_second=8.0))
    assert not line.told


def test_whatever_breaks_rank_0_ends_all(line):
    """Neither an engine that is wrong nor one whose others are gone can be built again alone."""
    engine = leading(line)
    engine.submit(request("a"))
    engine.step()
    for error in (IntegrityError("page 3 is in two chunks"), RuntimeError("Connection closed by peer")):
        engine._read_viewers_clocks = partial(_raise, error)
        with pytest.raises(RankError, match=f"rank 0 cannot go on: {type(error).__name__}: {error}") as caught:
            engine.step()
        assert isinstance(caught.value, WorkerError)  # so that a worker does not build another one


def _raise(error: Exception) -> None:
    raise error
