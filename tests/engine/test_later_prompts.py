"""A schedule of prompts: each takes over at its own chunk boundary, as if `Engine.prompt` had been called there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pagedvid.engine.checkpoint_file import load_checkpoint, save_checkpoint
from pagedvid.engine.requests import Continuation, LaterPrompt, RequestFailure, VideoRequest
from pagedvid.engine.snapshot_fields import snapshot_from_fields, snapshot_to_fields
from pagedvid.errors import CapacityError, ConfigError, PromptError
from tests.engine.latent_bytes import video_of
from tests.engine.snapshots import origin_with
from tests.engine.toy_model import FRAMES_PER_CHUNK, ToyModel, assert_all_pages_free, toy_engine
from tests.engine.verbs import STEPS_PER_CHUNK, alone, request, rest, steps

CHUNKS = 7
SWITCHES = ((2, "2", False), (4, "3", True))
"""(First chunk, prompt, recache)."""
ALONE = {"window": (1, 2), "reproducible": True}


def scheduled(name: str = "a", switches=SWITCHES, early: int = 0, **fields: object) -> VideoRequest:
    """`early`: frames by which each prompt is due before its chunk begins."""
    later = [LaterPrompt(chunk * FRAMES_PER_CHUNK - early, prompt, recache) for chunk, prompt, recache in switches]
    return request(name, chunks=CHUNKS, later_prompts=tuple(later), **fields)


def by_hand(switches=SWITCHES, **settings: object) -> np.ndarray:
    """The frames of a video whose prompts are changed by calls at these chunk boundaries."""
    engine = toy_engine(**{**ALONE, **settings})
    engine.submit(request("a", chunks=CHUNKS))
    outputs, before = [], 0
    for chunk, prompt, recache in switches:
        outputs += steps(engine, (chunk - before) * STEPS_PER_CHUNK)
        engine.prompt("a", prompt, recache=recache)
        before = chunk
    return video_of(outputs + rest(engine), "a")


@pytest.mark.parametrize("recache", [False, True])
@pytest.mark.parametrize("early", [0, 1, FRAMES_PER_CHUNK - 1])
def test_frames_are_those_of_calls_at_the_boundaries(recache, early):
    switches = ((2, "2", recache), (4, "3", recache))
    new = alone(scheduled(switches=switches, early=early), **ALONE)
    np.testing.assert_array_equal(new, by_hand(switches))
    old = alone(request("a", chunks=CHUNKS), **ALONE)
    first = 2 * FRAMES_PER_CHUNK
    np.testing.assert_array_equal(new[:first], old[:first])
    assert not np.array_equal(new[first:], old[first:])


def test_recache_makes_other_frames_than_none():
    kept, again = (alone(scheduled(switches=((3, "2", recache),)), **ALONE) for recache in (False, True))
    np.testing.assert_array_equal(kept[: 3 * FRAMES_PER_CHUNK], again[: 3 * FRAMES_PER_CHUNK])
    assert not np.array_equal(kept[3 * FRAMES_PER_CHUNK :], again[3 * FRAMES_PER_CHUNK :])


@pytest.mark.parametrize("num_pages", [300, 4096])
def test_frames_do_not_depend_on_what_else_runs(num_pages):
    """In the small pool, whole videos wait for each other; room for a second copy is never missing."""
    engine = toy_engine(num_pages=num_pages, **ALONE)
    for name in "abc":
        engine.submit(scheduled(name))
    for name in "xyz":
        engine.submit(request(name, chunks=CHUNKS))
    outputs = rest(engine)
    expected = by_hand()
    assert not any(isinstance(output, RequestFailure) for output in outputs)
    for name in "abc":
        np.testing.assert_array_equal(video_of(outputs, name), expected)
    assert_all_pages_free(engine)


@pytest.mark.parametrize("after", [0, 1, 6, 8, 12, 13, 19])
def test_a_checkpoint_carries_what_is_to_come(after, tmp_path):
    engine = toy_engine(**ALONE)
    engine.submit(scheduled())
    outputs = steps(engine, after)
    origin = replace(origin_with(engine.cache.spec.codecs), geometry=engine.model.geometry, cache=engine.cache.spec)
    origin = replace(origin, window=engine.window)
    save_checkpoint(tmp_path / "a", engine.checkpoint("a"), origin)
    snapshot = load_checkpoint(tmp_path / "a", origin)
    assert len(snapshot.request.later_prompts) == sum(after < chunk * STEPS_PER_CHUNK for chunk, *_ in SWITCHES)
    other = toy_engine(**ALONE)
    other.restore(snapshot)
    np.testing.assert_array_equal(video_of(outputs + rest(other), "a"), by_hand())


def test_forks_keep_the_rest_of_the_schedule_unless_they_have_a_prompt():
    engine = toy_engine(**ALONE)
    engine.submit(scheduled())
    steps(engine, 3 * STEPS_PER_CHUNK)
    engine.fork("a", [Continuation("same"), Continuation("own", prompt="5")])
    outputs = rest(engine)
    tail, first = by_hand()[3 * FRAMES_PER_CHUNK :], 3 * FRAMES_PER_CHUNK
    np.testing.assert_array_equal(video_of(outputs, "same"), tail)
    expected = by_hand(((2, "2", False), (3, "5", False)))[first:]
    np.testing.assert_array_equal(video_of(outputs, "own"), expected)


def test_a_prompt_by_hand_counts_until_the_next_of_the_schedule():
    engine = toy_engine(**ALONE)
    engine.submit(scheduled())
    outputs = steps(engine, 3 * STEPS_PER_CHUNK)
    engine.prompt("a", "5")
    outputs += rest(engine)
    expected = by_hand(((2, "2", False), (3, "5", False), (4, "3", True)))
    np.testing.assert_array_equal(video_of(outputs, "a"), expected)


def test_a_video_that_cannot_switch_fails_and_the_others_go_on():
    engine = toy_engine(**ALONE)
    engine.submit(scheduled("a", ((2, "2 raises@0.0", True),)))
    engine.submit(request("b", chunks=CHUNKS))
    outputs = rest(engine)
    (failed,) = [output for output in outputs if isinstance(output, RequestFailure)]
    assert failed.request_id == "a"
    others = [output for output in outputs if output is not failed]
    np.testing.assert_array_equal(video_of(others, "b"), alone(request("b", chunks=CHUNKS), **ALONE))
    assert_all_pages_free(engine)


@pytest.mark.parametrize(
    ("switches", "early", "error", "message"),
    [
        (((2, "nothing", False),), 0, PromptError, "nothing"),
        (((CHUNKS, "2", False),), 1, ConfigError, "would never show"),
        (((2, "2", False), (2, "3", False)), 0, ConfigError, "they must ascend"),
        (((CHUNKS, "2", False),), 0, ConfigError, "be below the video's 21"),
    ],
)
def test_what_cannot_be_is_refused_at_once(switches, early, error, message):
    engine = toy_engine()
    with pytest.raises(error, match=message):
        engine.submit(scheduled(switches=switches, early=early))
    assert not engine.has_work


def test_two_prompts_for_one_chunk_are_refused():
    later = (LaterPrompt(4, "2"), LaterPrompt(5, "3"))
    with pytest.raises(ConfigError, match=r"the prompt '2' .* would never show"):
        toy_engine().submit(request("a", chunks=CHUNKS, later_prompts=later))


def test_a_pool_without_room_for_both_copies_is_refused_at_once():
    pages = toy_engine(**ALONE)
    pages.submit(request("a", chunks=CHUNKS))
    steps(pages, 1)
    num_pages = pages.cache.reserved_pages
    engine = toy_engine(num_pages=2 * num_pages - 1, **ALONE)
    engine.check(scheduled(switches=((2, "2", False),)))
    with pytest.raises(
        CapacityError, match=f"needs {2 * num_pages} pages at its peak while its chunks are stored again"
    ):
        engine.submit(scheduled())


def test_a_model_that_stores_chunks_together_cannot_store_them_again():
    from pagedvid.engine.job import check_stored_alone
    from pagedvid.errors import StateError

    model = ToyModel()
    engine = toy_engine(model)
    schedule = model.schedule(model.prepare("1", {}, 9), 9, 2, engine.window)

    def together():
        for round_ in schedule.rounds():
            yield replace(round_, ranges=tuple(replace(part, sees=(0,)) for part in round_.ranges))

    check_stored_alone(schedule, "a")
    with pytest.raises(StateError, match="change its prompts without recache"):
        check_stored_alone(replace(schedule, rounds=together), "a")


@pytest.mark.parametrize("name", ["later_prompts", "earlier_prompts"])
def test_a_checkpoint_of_an_earlier_version_has_no_such_prompts(name):
    engine = toy_engine(**ALONE)
    engine.submit(request("a", chunks=CHUNKS))
    steps(engine, 4)
    tensors: dict = {}
    fields = snapshot_to_fields(engine.checkpoint("a"), tensors)
    assert fields["request"].pop(name) == []
    snapshot = snapshot_from_fields(fields, tensors, engine.model.geometry, engine.cache.spec)
    assert snapshot.request == request("a", chunks=CHUNKS)


def test_a_model_that_cannot_be_steered_keeps_and_encodes_no_earlier_prompt():
    model = ToyModel()
    prepared: list[str] = []
    encode = model.encode_prompt
    model.encode_prompt = lambda prompt: prepared.append(prompt) or encode(prompt)
    engine = toy_engine(model, **ALONE)
    engine.submit(scheduled())
    steps(engine, 3 * STEPS_PER_CHUNK)
    prepared.clear()
    engine.prompt("a", "5")
    engine.fork("a", [Continuation("b", "6")])
    assert engine.checkpoint("a").request.earlier_prompts == engine.checkpoint("b").request.earlier_prompts == ()
    assert set(prepared) == {"5", "6"}
