"""Another prompt on the way, with and without storing the kept chunks again."""

from __future__ import annotations

import numpy as np
import pytest

from pagedvid.engine.requests import PromptRefused
from pagedvid.errors import CapacityError, PromptError
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import FRAMES_PER_CHUNK, ToyModel, assert_all_pages_free, toy_engine
from tests.engine.verbs import alone, chunks_of, request, rest, steps


@pytest.mark.parametrize("recache", [False, True])
@pytest.mark.parametrize("after", range(1, 10))
def test_a_prompt_counts_from_the_next_chunk_on(after, recache):
    model = ToyModel()
    engine = toy_engine(model, reproducible=True)
    engine.submit(request("a"))
    outputs = steps(engine, after)
    engine.prompt("a", "2", recache=recache)
    outputs += rest(engine)
    first = -(-after // 3)
    old, new = alone(request("a"), reproducible=True), video_of(outputs, "a")
    np.testing.assert_array_equal(new[: first * FRAMES_PER_CHUNK], old[: first * FRAMES_PER_CHUNK])
    assert first == 4 or not np.array_equal(new[first * FRAMES_PER_CHUNK :], old[first * FRAMES_PER_CHUNK :])
    assert_all_pages_free(engine)


@pytest.mark.parametrize("branches", [("cond",), ("cond", "uncond")])
def test_recached_chunks_are_those_of_a_pass_under_the_new_prompt(branches):
    """An engine whose clean chunks are handed to it, and which commits them under the new prompt, is the oracle."""
    engine = toy_engine(ToyModel(branches=branches), window=(1, 2), reproducible=True)
    engine.submit(request("a", chunks=6))
    outputs = steps(engine, 9)
    engine.prompt("a", "2", recache=True)
    outputs += rest(engine)

    oracle = toy_engine(
        HandedChunks(branches=branches, given=video_of(outputs, "a")[: 3 * FRAMES_PER_CHUNK]),
        window=(1, 2),
        reproducible=True,
    )
    oracle.submit(request("a", chunks=6, prompt="2"))
    expected = video_of(rest(oracle), "a")
    np.testing.assert_array_equal(video_of(outputs, "a")[3 * FRAMES_PER_CHUNK :], expected[3 * FRAMES_PER_CHUNK :])
    assert_all_pages_free(engine)


def test_recaching_is_all_or_nothing():
    model = ToyModel()
    engine = toy_engine(model, window=(1, 2), reproducible=True)
    engine.submit(request("a", chunks=5))
    outputs = steps(engine, 9)
    (stream,) = engine.cache.streams
    before = [chunk.id for chunk in stream.chunks()]
    with pytest.raises(FloatingPointError):
        engine.prompt("a", "2 raises@0.0", recache=True)
    assert engine.cache.streams == (stream,) and [chunk.id for chunk in stream.chunks()] == before
    outputs += rest(engine)
    np.testing.assert_array_equal(
        video_of(outputs, "a"), alone(request("a", chunks=5), window=(1, 2), reproducible=True)
    )


def test_recaching_that_does_not_fit_at_the_boundary_is_told_and_the_video_goes_on():
    engine = toy_engine(num_pages=110, window=(1, 2), reproducible=True)
    engine.submit(request("a", chunks=5))
    outputs = steps(engine, 10)
    engine.prompt("a", "2", recache=True)
    outputs += rest(engine)
    (refused,) = [output for output in outputs if isinstance(output, PromptRefused)]
    assert (refused.request_id, refused.prompt, refused.recache) == ("a", "2", True)
    assert isinstance(refused.error, CapacityError)
    expected = alone(request("a", chunks=5), window=(1, 2), reproducible=True)
    np.testing.assert_array_equal(video_of([o for o in outputs if o is not refused], "a"), expected)


def test_a_bad_prompt_is_refused_at_once():
    engine = toy_engine()
    engine.submit(request("a"))
    steps(engine, 1)
    with pytest.raises(PromptError):
        engine.prompt("a", "nothing")
    assert chunks_of(rest(engine), "a") == [0, 1, 2, 3]


def test_a_waiting_video_begins_with_its_new_prompt():
    engine = toy_engine(max_concurrent=1)
    engine.submit(request("a"))
    engine.submit(request("b"))
    steps(engine, 1)
    engine.prompt("b", "3", recache=True)
    np.testing.assert_array_equal(video_of(rest(engine), "b"), alone(request("b", prompt="3")))


class HandedChunks(ToyModel):
    """The toy model, whose first chunks come out as given whatever is predicted for them."""

    def __init__(self, branches: tuple[str, ...], given: np.ndarray) -> None:
        super().__init__(branches=branches)
        from tests.engine.latent_bytes import latents_of_frames

        self._given = latents_of_frames(given).split(self.geometry.chunk_tokens)
        self._num_advanced = 0

    def advance(self, latents_TC, predictions, noise_level, next_noise_level):
        chunk, is_last = divmod(self._num_advanced, 2)
        self._num_advanced += 1
        if is_last and chunk < len(self._given):
            return self._given[chunk].clone()
        return super().advance(latents_TC, predictions, noise_level, next_noise_level)
