"""Sessions of the walk model that are steered on the way. Whatever interrupts them, their frames are those of the one
walk that says all of it at the start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pagedvid.cache.window import Window
from pagedvid.engine.checkpoint_file import Origin
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, LaterPrompt, VideoRequest
from pagedvid.errors import PromptError
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.service.checkpoint_files import OriginFiles
from pagedvid.service.records import NewFork
from tests.models.walk.untrained import NUM_STEPS, engine_of, random_network
from tests.service.listener import wait_until
from tests.service.services import Gated, Service, file_of, new

WINDOW = Window(1, 2, "given")
NUM_FRAMES = 11
FIRST = "map 5: right 3, down 2"


@cache
def model() -> WalkModel:
    return WalkModel.of(random_network())


class GatedWalk(Gated, Engine):
    def step(self):
        self.service.fault(self)
        return super().step()


def engine() -> Engine:
    return engine_of(model(), "fp32", WINDOW, reproducible=True)


class WalkService(Service):
    def __init__(self, folder: Path, **options) -> None:
        plain = engine()
        self.checkpoint_files = OriginFiles(
            Origin("walk", plain.model.geometry, plain.cache.spec, plain.window, NUM_STEPS)
        )
        super().__init__(folder, **options)

    def make_engine(self) -> Gated:
        made = engine()
        made.__class__ = GatedWalk
        return made


def frames_of(walk: str, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Of a walk that nothing happens to."""
    quiet = engine()
    quiet.submit(VideoRequest("a", walk, num_frames, seed=3))
    return np.concatenate([output.frames for output in quiet.run() if isinstance(output, ChunkOutput)])


def assert_walked(service: Service, id: str, walk: str, num_frames: int = NUM_FRAMES) -> None:
    sizes = [2] * (num_frames // 2) + [1] * (num_frames % 2)
    assert service.content(id) == file_of(frames_of(walk, num_frames), sizes)


@pytest.fixture
def begin(tmp_path):
    services = []

    def start(name: str = "data", **options) -> WalkService:
        services.append(WalkService(tmp_path / name, **options))
        return services[-1]

    yield start
    for service in services:
        service.close()


Begin = Callable[..., WalkService]


def killed(service: Service) -> str:
    service.settle()
    shutil.copytree(service.folder, service.folder.with_name("killed"))
    return "killed"


def steered(service: WalkService, steps: int, *prompts: str) -> str:
    """A session that is given these prompts after so many steps; its id."""
    id = service.sessions.create(new(FIRST, NUM_FRAMES)).id
    service.let(steps)
    service.wait_for_steps(steps)
    for prompt in prompts:
        service.sessions.prompt(id, prompt)
    return id


TURN_AT_4 = "map 5: right 3, left 2, up 9"
"""The whole walk of one that turns with "left 2, up 9" at its third chunk."""


@pytest.mark.parametrize(("steps", "more"), [(2, 0), (2, 1), (3, 2), (4, 0), (4, 3), (4, 8)])
def test_a_turn_and_a_kill(begin: Begin, steps: int, more: int):
    service = begin(steps=0)
    id = steered(service, steps, "left 2, up 9")
    service.let(more)
    service.wait_for_steps(steps + more)
    again = begin(killed(service))
    again.wait_for(id)
    assert_walked(again, id, TURN_AT_4)


@pytest.mark.parametrize("more", [0, 1, 4])
def test_a_turn_that_is_taken_back_in_the_same_chunk_never_was(begin: Begin, more: int):
    service = begin(steps=0)
    id = steered(service, 3, "left 9", FIRST)
    service.let(more)
    service.wait_for_steps(3 + more)
    again = begin(killed(service))
    again.wait_for(id)
    assert_walked(again, id, FIRST)


def test_several_turns_and_several_restarts(begin: Begin):
    service = begin(steps=0)
    id = steered(service, 3, "left 2")
    service.let(4)
    service.wait_for_steps(7)
    service.sessions.prompt(id, "up 9")
    service.close()
    service = begin(steps=2)
    service.wait_for_steps(2)
    service.sessions.prompt(id, "map 5: down-right 9")
    again = begin(killed(service))
    again.wait_for(id)
    assert_walked(again, id, "map 5: right 3, left 2, up 2, down-right 9")
    assert again.sessions.get(id).prompt == "map 5: down-right 9"


@pytest.mark.parametrize("breaks_at", [4, 6, 9])
def test_a_turn_and_an_engine_that_breaks(begin: Begin, breaks_at: int):
    def fault(engine: GatedWalk) -> None:
        if len(engine.service.engines) == 1 and engine.num_gated_steps == breaks_at:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    service = begin(steps=0, fault=fault)
    id = steered(service, 3, "left 2, up 9")
    service.let()
    service.wait_for(id)
    assert len(service.engines) == 2
    assert_walked(service, id, TURN_AT_4)


@pytest.mark.parametrize("more", [0, 2, 5])
def test_a_fork_at_a_crossing_and_a_kill(begin: Begin, more: int):
    service = begin(steps=0)
    id = steered(service, 3, "left 2, up 9")
    service.let(4)
    service.wait_for_steps(7)
    service.settle()
    same, own = service.sessions.fork(id, [NewFork(), NewFork("down 9")])
    service.let(more)
    service.wait_for_steps(7 + more)
    again = begin(killed(service))
    for one in (id, same.id, own.id):
        again.wait_for(one)
    assert_walked(again, id, TURN_AT_4)
    assert_walked(again, same.id, TURN_AT_4)
    assert_walked(again, own.id, "map 5: right 3, left 2, down 9")


def test_a_completed_walk_goes_on_where_it_was_led(begin: Begin):
    service = begin(steps=0)
    id = steered(service, 3, "left 2, up 9")
    service.let()
    service.wait_for(id)
    wait_until(lambda: service.engines[-1].cache.pool.num_used_pages == 0)
    (fork,) = service.sessions.fork(id, [NewFork("right 9", num_frames=15)])
    service.sessions.extend(id, 13)
    service.wait_for(fork.id)
    service.wait_for(id)
    walked = "map 5: right 3, left 2, up 6"  # the fork begins behind the last whole chunk, frame 12
    frames, own = frames_of(TURN_AT_4, 13), frames_of(f"{walked}, right 9", 15)
    assert service.content(id) == file_of(frames, [2, 2, 2, 2, 2, 1, 1, 1])
    assert service.content(fork.id) == file_of(own, [2, 2, 2, 2, 2, 1, 1, 2, 1])


@pytest.mark.parametrize("steps", [0, 1, 3, 5, 8])
def test_a_schedule_and_a_kill(begin: Begin, steps: int):
    """Up to its first checkpoint, too: then it begins anew."""
    later = (LaterPrompt(3, "left 2, up 9"), LaterPrompt(8, "map 5: right 9"))
    service = begin(steps=steps)
    id = service.sessions.create(new(FIRST, NUM_FRAMES, later_prompts=later)).id
    service.wait_for_steps(steps)
    again = begin(killed(service))
    again.wait_for(id)
    assert_walked(again, id, "map 5: right 3, left 2, up 2, right 9")


def test_another_map_is_refused_and_the_walk_goes_on(begin: Begin):
    service = begin(steps=0)
    id = steered(service, 3)
    with pytest.raises(PromptError, match="cannot name map 6"):
        service.sessions.prompt(id, "map 6: up")
    with pytest.raises(PromptError, match="cannot name map 6"):
        service.sessions.fork(id, [NewFork("map 6: up")])
    service.let()
    service.wait_for(id)
    assert service.sessions.get(id).prompt == FIRST
    assert_walked(service, id, FIRST)
