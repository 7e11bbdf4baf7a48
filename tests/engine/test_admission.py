"""What is refused at the door, who waits, and who comes next when pages are free."""

from __future__ import annotations

import pytest

from pagedvid.cache.window import Window
from pagedvid.engine.requests import ChunkOutput, RequestFailure, VideoRequest
from pagedvid.errors import CapacityError, ConfigError, PromptError
from tests.engine.toy_model import CHUNK_TOKENS, ToyModel, assert_all_pages_free, toy_engine

CHUNK_PAGES = 2 * 2 * 2 * 3
"""fp32: keys and values of two layers and two KV heads, three pages each."""
PEAK_PAGES = 3 * CHUNK_PAGES
"""Sink, recent and the chunk being committed."""


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (VideoRequest("b", "red", 6), PromptError, r"'red' does not begin with a number"),
        (VideoRequest("a", "1", 6), ConfigError, r"'a' is still waiting or running"),
        (VideoRequest("b", "1", 12), CapacityError, r"'b' needs 72 pages at its peak; the pool has 71"),
    ],
    ids=["prompt", "same id", "capacity"],
)
def test_a_request_that_cannot_run_is_refused_and_changes_nothing(request_, error, message):
    engine = toy_engine(num_pages=71)
    engine.submit(VideoRequest("a", "1", 6))
    for ask in (engine.check, engine.submit):
        with pytest.raises(error, match=message):
            ask(request_)
    engine.check(VideoRequest("b", "1", 6))
    assert engine.stats().num_waiting == 1
    assert {output.request_id for output in engine.run()} == {"a"}
    assert_all_pages_free(engine)


def test_a_refused_id_may_be_used_again():
    engine = toy_engine(num_pages=71)
    for wrong in (VideoRequest("a", "red", 6), VideoRequest("a", "1", 12)):
        with pytest.raises((PromptError, CapacityError)):
            engine.submit(wrong)
    engine.submit(VideoRequest("a", "1", 9))
    assert [output.chunk_index for output in engine.run()] == [0, 1, 2]


def test_capacity_counts_all_branches():
    with pytest.raises(CapacityError, match="needs 144 pages at its peak; the pool has 143"):
        toy_engine(ToyModel(("cond", "uncond")), num_pages=143).submit(VideoRequest("a", "1", 12))
    toy_engine(ToyModel(("cond", "uncond")), num_pages=144).submit(VideoRequest("a", "1", 12))


def test_the_queue_drains_through_a_pool_for_two():
    engine = toy_engine(num_pages=2 * PEAK_PAGES + CHUNK_PAGES - 1)
    for number in range(5):
        engine.submit(VideoRequest(str(number), str(number), 12, seed=number))
    num_running, finished = [], []
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output, ChunkOutput)
            finished += [output.request_id] * output.is_last
        num_running.append(engine.stats().num_running)
        assert engine.cache.reserved_pages <= 2 * PEAK_PAGES
    assert max(num_running) == 2 and set(finished) == set("01234")
    assert_all_pages_free(engine)


def test_a_pool_of_exactly_one_peak_is_enough():
    engine = toy_engine(num_pages=PEAK_PAGES)
    for number in range(2):
        engine.submit(VideoRequest(str(number), str(number), 12))
    assert [output.request_id for output in engine.run()] == ["0"] * 4 + ["1"] * 4
    assert engine.cache.pool.peak_used_pages == PEAK_PAGES


def test_the_first_that_does_not_fit_keeps_the_others_behind_it():
    """In order of arrival: a long video is never overtaken for ever by short ones."""
    engine = toy_engine(num_pages=2 * PEAK_PAGES - 1)
    for id, num_frames in (("long", 12), ("also long", 12), ("short", 3)):
        engine.submit(VideoRequest(id, "1", num_frames))
    engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 2)
    last = [output.request_id for output in engine.run() if output.is_last]
    assert last[0] == "long" and set(last) == {"long", "also long", "short"}


def test_short_videos_reserve_less_and_so_more_run_at_once():
    engine = toy_engine(num_pages=PEAK_PAGES + 2 * CHUNK_PAGES)
    for id, num_frames in (("long", 12), ("two chunks", 6), ("one chunk", 3), ("two chunks more", 4)):
        engine.submit(VideoRequest(id, "1", num_frames))
    engine.step()
    assert engine.stats().num_running == 4
    assert engine.cache.reserved_pages == engine.cache.pool.num_pages
    list(engine.run())
    assert_all_pages_free(engine)


def test_slots_limit_the_running_videos():
    engine = toy_engine(max_concurrent=2)
    for number in range(5):
        engine.submit(VideoRequest(str(number), str(number), 6, seed=number))
    while engine.has_work:
        engine.step()
        assert engine.stats().num_running <= 2
        assert all(len(forward) <= 2 for forward in engine.model.forwards)
    assert max(len(forward) for forward in engine.model.forwards) == 2


def test_requests_may_arrive_at_any_step():
    engine = toy_engine()
    engine.submit(VideoRequest("a", "1", 6))
    engine.step()
    engine.submit(VideoRequest("b", "2", 6))
    outputs = list(engine.run())
    engine.submit(VideoRequest("c", "3", 6))
    outputs += engine.run()
    assert [output.request_id for output in outputs] == ["a", "b", "a", "b", "c", "c"]
    assert_all_pages_free(engine)


def test_pages_held_by_others_are_named_instead_of_waiting_for_ever():
    engine = toy_engine(num_pages=PEAK_PAGES)
    foreign = engine.cache.open(Window(0, 1), CHUNK_TOKENS)
    engine.submit(VideoRequest("a", "1", 12))
    for _ in range(2):
        with pytest.raises(CapacityError, match=r"'a' cannot start although no video is running: .* 48 of 72 pages"):
            engine.step()
    engine.cache.release(foreign)
    assert len(list(engine.run())) == 4


def test_a_seed_without_noise_fails_its_own_request_only():
    engine = toy_engine()
    for id, seed in (("a", 1), ("bad", -1), ("b", 2)):
        engine.submit(VideoRequest(id, "1", 6, seed))
    outputs = list(engine.run())
    (failure,) = [output for output in outputs if isinstance(output, RequestFailure)]
    assert failure.request_id == "bad" and "seed -1 has no noise" in str(failure.error)
    assert [output.request_id for output in outputs if output is not failure] == ["a", "b", "a", "b"]
    assert_all_pages_free(engine)
