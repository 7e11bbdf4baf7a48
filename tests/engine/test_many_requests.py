"""An engine that lives long: ids come back, and nothing grows with the number of requests that have ended."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace

import pytest

from pagedvid.engine.engine import Engine
from pagedvid.engine.job import Job
from pagedvid.engine.requests import ChunkOutput, RequestFailure, VideoRequest
from pagedvid.errors import ConfigError, PromptError
from tests.engine.toy_model import assert_all_pages_free, toy_engine

REQUEST = VideoRequest("a", "1", 6)


def finished(engine: Engine) -> None:
    outputs = list(engine.run())
    assert [output.chunk_index for output in outputs] == [0, 1]


def failed(engine: Engine) -> None:
    """By a request of the same id that breaks at its commit pass."""
    engine.cancel("a")
    engine.submit(replace(REQUEST, prompt="1 raises@0.0"))
    assert isinstance(list(engine.run())[-1], RequestFailure)


def failed_at_the_start(engine: Engine) -> None:
    engine.cancel("a")
    engine.submit(replace(REQUEST, seed=-1))
    assert isinstance(list(engine.run())[-1], RequestFailure)


def cancelled_while_waiting(engine: Engine) -> None:
    engine.cancel("a")


def cancelled_while_running(engine: Engine) -> None:
    for _ in range(3):
        engine.step()
    engine.cancel("a")


def closed(engine: Engine) -> None:
    engine.step()
    engine.close()


ENDINGS = [finished, failed, failed_at_the_start, cancelled_while_waiting, cancelled_while_running, closed]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_an_id_is_free_when_its_request_has_ended(ending):
    engine = toy_engine()
    for _ in range(2):
        engine.submit(REQUEST)
        with pytest.raises(ConfigError, match="'a' is still waiting or running"):
            engine.submit(REQUEST)
        ending(engine)
        assert_all_pages_free(engine)
    engine.submit(REQUEST)
    finished(engine)


def test_the_second_time_is_like_the_first():
    engine = toy_engine()
    first, second = [], []
    for outputs in (first, second):
        engine.submit(replace(REQUEST, num_frames=9))
        outputs += engine.run()
    assert [(o.chunk_index, o.is_last, o.stored_bytes, o.bf16_bytes) for o in first] == [
        (o.chunk_index, o.is_last, o.stored_bytes, o.bf16_bytes) for o in second
    ]
    assert all((a.frames == b.frames).all() for a, b in zip(first, second, strict=True))


def live_through_one_round(engine: Engine, number: int) -> None:
    """Eight requests with new ids that end in every way there is."""
    for kind, prompt in enumerate(("1", "2", "3", "4 raises@0.5", "5 raises@0.0", "6 nan@0.5")):
        engine.submit(VideoRequest(f"{number}-{kind}", prompt, 4, seed=kind))
    engine.submit(VideoRequest(f"{number}-no noise", "7", 4, seed=-1))
    with pytest.raises(PromptError):
        engine.submit(VideoRequest(f"{number}-refused", "no number", 4))
    engine.cancel(f"{number}-2")
    outputs = engine.step()
    engine.cancel(f"{number}-0")
    outputs += list(engine.run())
    assert sum(isinstance(output, ChunkOutput) and output.is_last for output in outputs) == 1
    assert sum(isinstance(output, RequestFailure) for output in outputs) == 4
    engine.model.forwards.clear()


def test_nothing_grows_with_the_requests_that_have_ended(caplog):
    """Objects, and blocks of memory, that Python holds: of a thousand requests less than half a block each is left.
    The first few hundred fill Python's own stores of free blocks."""
    caplog.set_level("CRITICAL")
    engine = toy_engine(codecs="int2", num_denoise_steps=2)
    engine.cache.spec = replace(engine.cache.spec, debug_checks=False)

    def held_after(first: int, num_rounds: int) -> tuple[int, int]:
        for number in range(first, first + num_rounds):
            live_through_one_round(engine, number)
        gc.collect()
        return len(gc.get_objects()), sys.getallocatedblocks()

    held = [held_after(0, 50)]
    for number in range(3):  # other tests may have left threads that allocate now and then; a leak grows every time
        held.append(held_after(50 + 125 * number, 125))
        if all(later - earlier < 500 for earlier, later in zip(*held[-2:], strict=True)):
            return
    pytest.fail(f"objects and blocks grow: {held}")
    assert_all_pages_free(engine)


def test_a_failure_that_is_kept_holds_no_latents():
    """Its traceback would lead to the job and its tensors; they are gone at once, not when rubbish is collected."""
    engine, failures = toy_engine(num_pages=1000), []
    gc.collect()
    gc.disable()
    try:
        for number, prompt in enumerate(("1 raises@0.5", "2 raises@0.0", "3 nan@0.5", "4 nan@0.0")):
            engine.submit(VideoRequest(str(number), prompt, 6))
        engine.submit(VideoRequest("no noise", "5", 6, seed=-2))
        failures += [output for output in engine.run() if isinstance(output, RequestFailure)]
        assert len(failures) == 5
        assert [held for held in gc.get_objects() if type(held) is Job] == []
    finally:
        gc.enable()


def test_where_a_video_failed_is_in_the_log(caplog):
    caplog.set_level("DEBUG", "pagedvid.engine.roster")
    engine = toy_engine()
    engine.submit(VideoRequest("a", "1 raises@0.5", 6))
    list(engine.run())
    assert "where video a failed" in caplog.text and "in packed_forward" in caplog.text
