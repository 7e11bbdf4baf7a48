"""One video's failure or cancellation is its own affair: the others finish with the same frames."""

from __future__ import annotations

from functools import lru_cache

import pytest
from torch import Tensor

from pagedvid.engine.requests import ChunkOutput, RequestFailure, VideoRequest
from pagedvid.errors import ConfigError, IntegrityError, NonFiniteError
from tests.engine.latent_bytes import latents_of_frames, video_of
from tests.engine.toy_model import ToyModel, assert_all_pages_free, toy_engine

BRANCHES = [("cond",), ("cond", "uncond")]
OTHERS = {"a": 1, "z": 2}
"""Prompt and seed of the videos before and behind the one that breaks."""


def submit_around(engine, id: str, prompt: str, seed: int = 9) -> None:
    engine.submit(VideoRequest("a", "1", 9, seed=1))
    engine.submit(VideoRequest(id, prompt, 9, seed=seed))
    engine.submit(VideoRequest("z", "2", 9, seed=2))


@lru_cache
def alone_latents(number: int, codec: str, branches: tuple[str, ...]) -> Tensor:
    engine = toy_engine(ToyModel(branches), codec)
    engine.submit(VideoRequest("alone", str(number), 9, seed=number))
    return latents_of_frames(video_of(list(engine.run()), "alone"))


def assert_others_are_whole(outputs, model: ToyModel, codec: str) -> None:
    """As if they had been alone; int2 may tip single codes."""
    for id, number in OTHERS.items():
        alone, together = alone_latents(number, codec, model.branches), latents_of_frames(video_of(outputs, id))
        assert alone.shape == together.shape
        assert (alone - together).abs().max() <= (1e-5 if codec == "fp32" else 1e-3)


def broken_outputs(outputs) -> tuple[int, Exception]:
    """How many chunks of "bad" came out, and the error that ended it: its last output and only failure."""
    assert [output.request_id for output in outputs if isinstance(output, RequestFailure)] == ["bad"]
    *chunks, failure = [output for output in outputs if output.request_id == "bad"]
    assert isinstance(failure, RequestFailure)
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    return len(chunks), failure.error


@pytest.mark.parametrize("branches", BRANCHES, ids="+".join)
@pytest.mark.parametrize("codec", ["fp32", "int2"])
@pytest.mark.parametrize(
    ("fault", "num_chunks", "error", "message"),
    [
        ("raises@1.0", 0, FloatingPointError, "broke"),
        ("raises@0.5", 0, FloatingPointError, "broke"),
        ("raises@0.0", 1, FloatingPointError, "broke"),
        ("nan@1.0", 0, NonFiniteError, r"chunk 0 of 'bad' has NaN or infinite latents"),
        ("nan@0.0", 1, NonFiniteError, r"layer 0, KV head 0, 1, chunk 0 cannot be stored"),
    ],
)
def test_a_model_that_breaks_for_one_video(fault, num_chunks, error, message, codec, branches):
    model = ToyModel(branches)
    engine = toy_engine(model, codec)
    submit_around(engine, "bad", f"3 {fault}")
    outputs = list(engine.run())
    assert_all_pages_free(engine)
    num_out, raised = broken_outputs(outputs)
    assert num_out == num_chunks and type(raised) is error
    with pytest.raises(error, match=message):
        raise raised
    assert_others_are_whole(outputs, model, codec)
    assert (engine.stats().num_finished, engine.stats().num_failed) == (2, 1)


def test_noise_that_fails_in_the_middle_of_a_video():
    """The commit of chunk 0 has been published by then."""
    model = ToyModel()
    engine = toy_engine(model)
    submit_around(engine, "bad", "3", seed=-2)
    outputs = list(engine.run())
    assert_all_pages_free(engine)
    num_out, error = broken_outputs(outputs)
    assert num_out == 1 and "seed -2 has no noise for chunk 1" in str(error)
    assert_others_are_whole(outputs, model, "fp32")


@pytest.mark.parametrize("method", ["advance", "decode"])
def test_sampler_or_decoder_that_fails_for_one_video(method, monkeypatch):
    """First come, first served: the second call of every step is for the second video."""
    model = ToyModel()
    engine, works, num_calls = toy_engine(model), getattr(model, method), 0

    def breaks_once(*arguments):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            raise ZeroDivisionError(f"{method} broke")
        return works(*arguments)

    submit_around(engine, "bad", "3")
    with monkeypatch.context() as patched:
        patched.setattr(model, method, breaks_once)
        outputs = list(engine.run())
    assert_all_pages_free(engine)
    num_out, error = broken_outputs(outputs)
    assert num_out == 0 and f"{method} broke" in str(error)
    assert_others_are_whole(outputs, model, "fp32")


def test_all_videos_may_fail():
    engine = toy_engine()
    for number in range(3):
        engine.submit(VideoRequest(str(number), f"{number} raises@0.5", 6))
    outputs = list(engine.run())
    assert [output.request_id for output in outputs] == ["0", "1", "2"]
    assert all(isinstance(output, RequestFailure) for output in outputs)
    assert_all_pages_free(engine)


def test_an_interrupt_is_no_failure_of_a_video(monkeypatch):
    """It goes up to the caller, nothing is half stored, and the engine can go on or be closed."""
    engine = toy_engine()
    engine.submit(VideoRequest("a", "1", 6))
    engine.step(), engine.step()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(engine.model, "forward", interrupt)
        engine.step()
    engine.cache.check()
    assert engine.cache.pool.num_used_pages == 0 and engine.stats().num_running == 1
    assert [output.is_last for output in engine.run()] == [True]
    assert_all_pages_free(engine)


@pytest.mark.parametrize("function", ["advance_chunks", "finished_chunk"])
@pytest.mark.parametrize("num_steps", [0, 2, 3])
def test_an_interrupt_after_a_forward_cancels_its_videos(function, num_steps, monkeypatch):
    """Their round is stored and cannot run again; after two steps it is a commit pass. The engine goes on."""
    model = ToyModel()
    engine = toy_engine(model, max_concurrent=2)
    submit_around(engine, "bad", "3")
    for _ in range(num_steps):
        engine.step()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"pagedvid.engine.rounds.{function}", interrupt)
        list(engine.run())
    engine.cache.check()
    assert engine.cache.streams == () and engine.stats().num_waiting == 1
    engine.submit(VideoRequest("a", "1", 9, seed=1))
    outputs = list(engine.run())
    assert_others_are_whole(outputs, model, "fp32")
    assert_all_pages_free(engine)


@pytest.mark.parametrize("num_steps", range(8))
def test_cancelling_at_any_step_frees_the_pages_at_once(num_steps):
    model = ToyModel()
    engine = toy_engine(model)
    submit_around(engine, "bad", "3")
    outputs = [output for _ in range(num_steps) for output in engine.step()]
    pages_before, used_before = engine.cache.reserved_pages, engine.cache.pool.num_used_pages
    engine.cancel("bad")
    engine.cache.check()
    assert engine.cache.reserved_pages == pages_before * 2 // 3
    assert engine.cache.pool.num_used_pages == used_before * 2 // 3
    outputs += engine.run()
    assert sum(output.request_id == "bad" for output in outputs) == (num_steps >= 2) + (num_steps >= 5)
    assert_all_pages_free(engine)
    assert_others_are_whole(outputs, model, "fp32")
    assert (engine.stats().num_finished, engine.stats().num_failed) == (2, 0)


def test_cancelling_a_waiting_request():
    engine = toy_engine(max_concurrent=1)
    submit_around(engine, "bad", "3")
    engine.step()
    engine.cancel("bad")
    assert engine.stats().num_waiting == 1
    outputs = list(engine.run())
    assert {output.request_id for output in outputs} == {"a", "z"}
    assert not any(prompt == "3" for forward in engine.model.forwards for prompt, _, _ in forward)


def test_only_waiting_and_running_requests_can_be_cancelled():
    engine = toy_engine()
    engine.submit(VideoRequest("a", "1", 3))
    with pytest.raises(ConfigError, match="'b' is neither waiting nor running"):
        engine.cancel("b")
    list(engine.run())
    with pytest.raises(ConfigError, match="'a' is neither waiting nor running"):
        engine.cancel("a")


def test_closing_drops_everything():
    engine = toy_engine(max_concurrent=2)
    submit_around(engine, "bad", "3")
    assert [type(output) for _ in range(3) for output in engine.step()] == [ChunkOutput] * 2
    assert engine.cache.pool.num_used_pages > 0
    engine.close()
    assert_all_pages_free(engine)
    assert engine.step() == []


def test_a_broken_engine_says_what_it_was_working_on(monkeypatch):
    engine = toy_engine(reproducible=True)
    submit_around(engine, "b", "3")

    def break_down(*_):
        raise IntegrityError("the bookkeeping is wrong")

    engine.step()
    assert engine.latest_batch == ("a",)
    monkeypatch.setattr(engine.model, "forward", break_down)
    engine.cancel("a")
    with pytest.raises(IntegrityError):
        engine.step()
    assert engine.latest_batch == ("b",)
