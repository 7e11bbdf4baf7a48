"""A walk that is steered on the way: its frames are those of the one walk that says all of it at the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedvid.cache.window import Window
from pagedvid.engine.checkpoint_file import Origin, load_checkpoint, save_checkpoint
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import (
    ChunkOutput,
    Continuation,
    EarlierPrompt,
    EngineOutput,
    LaterPrompt,
    VideoRequest,
)
from pagedvid.errors import PromptError, StateError
from pagedvid.models.walk.actions import read_walk
from pagedvid.models.walk.pipeline import WalkModel
from tests.models.walk.untrained import NUM_STEPS, engine_of, random_network

WINDOW = Window(1, 2, "given")
NUM_FRAMES = 13
NUM_ROUNDS = 19
"""Of a video whose first chunk is given: a commit pass, then two denoise steps and a commit pass each, but for the
last."""
FIRST = "map 5: right 3, down 2"
TURNS = ("left 2", "down", "up-right 1000", "map 5: right 3", "stay", FIRST)


@pytest.fixture(scope="module")
def model() -> WalkModel:
    return WalkModel.of(random_network())


def engine_for(model: WalkModel) -> Engine:
    return engine_of(model, "fp32", WINDOW, reproducible=True)


def frames_by_id(outputs: Sequence[EngineOutput]) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    for output in outputs:
        assert isinstance(output, ChunkOutput), output
        parts.setdefault(output.request_id, []).append(output.frames)
    return {id: np.concatenate(frames) for id, frames in parts.items()}


Course = tuple[tuple[int, str], ...]
"""(First frame, prompt) of a walk from its beginning on."""


def turned(course: Course, frame: int, prompt: str) -> Course:
    kept = tuple(part for part in course if part[0] < frame)
    return kept if kept and kept[-1][1] == prompt else (*kept, (frame, prompt))


def whole_walk(course: Course) -> str:
    """All actions of a course in one prompt, none of them repeated by a number."""
    actions: list[str] = []
    for frame, prompt in course:
        actions = (actions + ["stay"] * frame)[: max(0, frame - 1)] + list(read_walk(prompt).actions)
    return ("map 5: " if course[0][1].startswith("map") else "") + ", ".join(actions[:NUM_FRAMES])


@cache
def expected(model: WalkModel, course: Course) -> np.ndarray:
    engine = engine_for(model)
    engine.submit(VideoRequest("whole", whole_walk(course), NUM_FRAMES))
    return frames_by_id(list(engine.run()))["whole"]


def next_chunk_frame(engine: Engine, id: str) -> int:
    """Frame with which the next chunk of a video on a given map begins."""
    num_rounds = engine.checkpoint(id).num_rounds_done
    return 0 if num_rounds == 0 else 2 + 2 * -(-(num_rounds - 1) // (NUM_STEPS + 1))


@pytest.mark.parametrize("after", range(NUM_ROUNDS + 1))
def test_a_turn_counts_from_the_next_chunk_on(model: WalkModel, after: int):
    engine = engine_for(model)
    engine.submit(VideoRequest("a", FIRST, NUM_FRAMES, keep=True))
    outputs = [output for _ in range(after) for output in engine.step()]
    frame = next_chunk_frame(engine, "a")
    engine.prompt("a", "map 5: left 2, up")
    outputs += engine.run()
    course = turned(((0, FIRST),), frame, "map 5: left 2, up")
    assert np.array_equal(frames_by_id(outputs)["a"], expected(model, course))


@pytest.mark.parametrize("num_frames", [5, 6])
def test_a_walk_that_is_over_turns_when_it_is_extended(model: WalkModel, num_frames: int):
    engine = engine_for(model)
    engine.submit(VideoRequest("a", FIRST, num_frames, keep=True))
    outputs = list(engine.run())
    engine.prompt("a", "up 9")
    engine.extend("a", NUM_FRAMES)
    outputs += engine.run()
    assert np.array_equal(frames_by_id(outputs)["a"], expected(model, ((0, FIRST), (6, "up 9"))))


@st.composite
def events(draw: st.DrawFn) -> list[tuple[int, str, str | None]]:
    """(Steps before, what happens, prompt)."""
    kinds = st.one_of(
        st.tuples(st.just("prompt"), st.sampled_from(TURNS)),
        st.tuples(st.just("fork"), st.none() | st.sampled_from(TURNS)),
        st.tuples(st.just("restart"), st.none()),
    )
    return [(draw(st.integers(0, 7)), *draw(kinds)) for _ in range(draw(st.integers(1, 5)))]


@given(events())
@settings(max_examples=12)
def test_whatever_happens_on_the_way(model: WalkModel, tmp_path_factory: Callable, events: list):
    """Prompts, forks and restarts from checkpoint files at any time; what waits for a chunk is asked again then."""
    engine = engine_for(model)
    engine.submit(VideoRequest("0", FIRST, NUM_FRAMES, keep=True))
    courses: dict[str, Course] = {"0": ((0, FIRST),)}
    first_frames = {"0": 0}
    outputs = engine.step()
    for steps, kind, prompt in events:
        outputs += [output for _ in range(steps) for output in engine.step()]
        frame = next_chunk_frame(engine, "0")
        if kind == "prompt":
            engine.prompt("0", prompt)
            courses["0"] = turned(courses["0"], frame, prompt)
        elif kind == "fork" and frame < NUM_FRAMES:
            id = str(len(courses))
            engine.fork("0", [Continuation(id, prompt)])
            courses[id] = courses["0"] if prompt is None else turned(courses["0"], frame, prompt)
            first_frames[id] = frame
        elif kind == "restart":
            engine = restarted(engine, model, courses, tmp_path_factory.mktemp("checkpoints"))
    outputs += engine.run()
    frames = frames_by_id(outputs)
    for id, course in courses.items():
        assert np.array_equal(frames[id], expected(model, course)[first_frames[id] :]), (id, course)


def restarted(engine: Engine, model: WalkModel, courses: dict[str, Course], folder: Path) -> Engine:
    """Another engine with the same videos; the same one while a fork waits to be made."""
    origin = Origin(model.name, model.geometry, engine.cache.spec, WINDOW, NUM_STEPS)
    try:
        snapshots = {id: engine.checkpoint(id) for id in courses}
    except StateError:
        return engine
    other = engine_for(model)
    for id, snapshot in snapshots.items():
        save_checkpoint(folder / id, snapshot, origin)
        other.restore(load_checkpoint(folder / id, origin))
        if (prompt := courses[id][-1][1]) != snapshot.request.prompt:
            other.prompt(id, prompt)
    return other


LATER = (LaterPrompt(3, "left 2, up"), LaterPrompt(6, "left 2, up"), LaterPrompt(9, "map 5: down 9"))
LATER_COURSE = ((0, FIRST), (4, "left 2, up"), (10, "map 5: down 9"))


def test_prompts_by_time_are_turns_and_an_equal_one_goes_on(model: WalkModel):
    engine = engine_for(model)
    engine.submit(VideoRequest("a", FIRST, NUM_FRAMES, later_prompts=LATER))
    outputs = [output for _ in range(12) for output in engine.step()]
    engine.fork("a", [Continuation("same"), Continuation("own", "right 9")])
    outputs += engine.run()
    frames = frames_by_id(outputs)
    assert np.array_equal(frames["a"], expected(model, LATER_COURSE))
    assert np.array_equal(frames["same"], frames["a"][10:])
    assert np.array_equal(frames["own"], expected(model, (*LATER_COURSE[:2], (10, "right 9")))[10:])


def test_a_request_may_begin_with_what_it_had_before(model: WalkModel):
    engine = engine_for(model)
    earlier = (EarlierPrompt(4, FIRST), EarlierPrompt(9, "left 2, up"))
    engine.submit(VideoRequest("a", "down 9", NUM_FRAMES, earlier_prompts=earlier))
    course = ((0, FIRST), (4, "left 2, up"), (9, "down 9"))
    assert np.array_equal(frames_by_id(list(engine.run()))["a"], expected(model, course))


@pytest.mark.parametrize("first", ["map 5: right", "right"])
def test_another_map_on_the_way_is_refused_at_once(model: WalkModel, first: str):
    engine = engine_for(model)
    engine.submit(VideoRequest("a", first, NUM_FRAMES))
    outputs = engine.step()
    message = "its map is (map 5|invented), so that a prompt cannot name map 6; leave the map out"
    with pytest.raises(PromptError, match=message):
        engine.prompt("a", "map 6: left")
    with pytest.raises(PromptError, match=message):
        engine.fork("a", [Continuation("b", "map 6: left")])
    with pytest.raises(PromptError, match=message):
        engine.submit(VideoRequest("c", first, NUM_FRAMES, later_prompts=(LaterPrompt(2, "map 6: left"),)))
    outputs += engine.run()
    assert np.array_equal(frames_by_id(outputs)["a"], expected(model, ((0, first),)))


def test_a_walk_that_has_not_begun_may_be_another_one(model: WalkModel):
    engine = engine_for(model)
    engine.submit(VideoRequest("a", "map 6: right", NUM_FRAMES))
    engine.prompt("a", FIRST)
    assert np.array_equal(frames_by_id(list(engine.run()))["a"], expected(model, ((0, FIRST),)))
