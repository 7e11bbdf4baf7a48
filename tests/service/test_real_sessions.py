"""Sessions over a real engine with the toy model and 2-bit keys and values: what a kill interrupts ends bit by bit as
in one engine that nobody interrupted and that was asked at the same steps."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pagedvid.engine.checkpoint_file import Origin
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, Continuation, LaterPrompt, VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.output.fragments import decoded, fragment, init_segment
from pagedvid.service.checkpoint_files import OriginFiles
from pagedvid.service.errors import Conflict
from pagedvid.service.records import NewFork
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import FRAMES_PER_CHUNK, toy_engine
from tests.service.listener import wait_until
from tests.service.services import VIDEO, Gated, Service, new


class GatedToy(Gated, Engine):
    pass


def engine() -> Engine:
    made = toy_engine(codecs="int2", reproducible=True)
    made.__class__ = GatedToy
    return made


class ToyService(Service):
    def __init__(self, folder: Path, **options) -> None:
        plain = toy_engine(codecs="int2")
        self.checkpoint_files = OriginFiles(Origin("toy", plain.model.geometry, plain.cache.spec, plain.window))
        super().__init__(folder, **options)

    def make_engine(self) -> Gated:
        return engine()


class Quiet:
    """One engine, asked directly."""

    steps_left = float("inf")

    def __init__(self, prompt: str, num_frames: int, **more: object) -> None:
        self.engine = engine()
        self.engine.service = self
        self.outputs: list = []
        self.engine.submit(VideoRequest("a", prompt, num_frames, seed=3, keep=True, **more))

    def step(self, number: int | None = None) -> None:
        while self.engine.has_work and (number is None or number > 0):
            self.outputs += self.engine.step()
            number = None if number is None else number - 1

    def frames(self, id: str) -> np.ndarray:
        return video_of(self.outputs, id)

    def sizes(self, id: str) -> list[int]:
        return [len(it.frames) for it in self.outputs if isinstance(it, ChunkOutput) and it.request_id == id]


def assert_recorded(service: Service, id: str, frames: np.ndarray, sizes: list[int]) -> None:
    content, rate, first = init_segment(*frames.shape[1:3], Fraction(VIDEO.frames_per_second)), Fraction(16), 0
    for number, size in enumerate(sizes, start=1):
        content += fragment(frames[first : first + size], first, rate, number)
        first += size
    assert first == len(frames)
    assert service.content(id) == content


@pytest.fixture
def begin(tmp_path):
    services = []

    def start(name: str = "data", **options) -> ToyService:
        services.append(ToyService(tmp_path / name, **options))
        return services[-1]

    yield start
    for service in services:
        service.close()


def killed(service: Service) -> str:
    service.settle()
    shutil.copytree(service.folder, service.folder.with_name("killed"))
    return "killed"


NUM_FRAMES = 5 * FRAMES_PER_CHUNK


@pytest.mark.parametrize("recache", [False, True])
@pytest.mark.parametrize(("steps", "more"), [(1, 0), (2, 0), (3, 1), (4, 0), (4, 1), (5, 4), (6, 6)])
def test_a_prompt_and_a_kill(begin, steps, more, recache):
    quiet = Quiet("1", NUM_FRAMES)
    quiet.step(steps)
    quiet.engine.prompt("a", "2", recache=recache)
    quiet.step()
    service = begin(steps=steps)
    id = service.sessions.create(new("1", NUM_FRAMES)).id
    service.wait_for_steps(steps)
    service.sessions.prompt(id, "2", recache=recache)
    service.let(more)
    service.wait_for_steps(steps + more)
    again = begin(killed(service))
    again.wait_for(id)
    assert_recorded(again, id, quiet.frames("a"), quiet.sizes("a"))
    wait_until(lambda: again.engines[-1].cache.pool.num_used_pages == 0)


@pytest.mark.parametrize("more", [0, 3, 7])
def test_forks_and_a_kill(begin, more):
    steps = 6
    quiet = Quiet("1", NUM_FRAMES)
    quiet.step(steps)
    quiet.engine.fork("a", [Continuation("b", "2"), Continuation("c", seed=9, num_frames=NUM_FRAMES + 4)])
    quiet.step()
    service = begin(steps=steps)
    id = service.sessions.create(new("1", NUM_FRAMES)).id
    service.wait_for_steps(steps)
    service.settle()
    b, c = service.sessions.fork(id, [NewFork("2"), NewFork(seed=9, num_frames=NUM_FRAMES + 4)])
    service.let(more)
    service.wait_for_steps(steps + more)
    again = begin(killed(service))
    for one in (id, b.id, c.id):
        again.wait_for(one)
    shared = NUM_FRAMES - len(quiet.frames("b"))
    for one, name in ((id, "a"), (b.id, "b"), (c.id, "c")):
        own, sizes = quiet.frames(name), quiet.sizes(name)
        if name != "a":
            own = np.concatenate([quiet.frames("a")[:shared], own])
            sizes = [FRAMES_PER_CHUNK] * (shared // FRAMES_PER_CHUNK) + sizes
        assert_recorded(again, one, own, sizes)


@pytest.mark.parametrize("num_frames", [NUM_FRAMES, NUM_FRAMES - 1])
def test_a_completed_video_goes_on_from_its_checkpoint(begin, num_frames):
    """Also where its last chunk was cut off: the frames that were made and not given out come first."""
    quiet = Quiet("1", num_frames)
    quiet.step()
    quiet.engine.extend("a", num_frames + 7)
    quiet.step()
    service = begin()
    id = service.sessions.create(new("1", num_frames)).id
    service.wait_for(id)
    wait_until(lambda: service.engines[-1].cache.pool.num_used_pages == 0)
    service.sessions.extend(id, num_frames + 7)
    service.wait_for(id)
    assert_recorded(service, id, quiet.frames("a"), quiet.sizes("a"))
    whole = Quiet("1", num_frames + 7)
    whole.step()
    assert (quiet.frames("a") == whole.frames("a")).all()
    (fork,) = service.sessions.fork(id, [NewFork("2")])
    service.wait_for(fork.id)
    first = service.sessions.recording(fork.id).chunks[0]
    content = service.content(fork.id)
    assert decoded(content[: first.start], content[first.start :]).shape[0] == 2 * (num_frames + 7)


# ---------------------------------------------------------------------- schedules of prompts

LATER = (LaterPrompt(FRAMES_PER_CHUNK, "2"), LaterPrompt(3 * FRAMES_PER_CHUNK, "3", recache=True))


@pytest.fixture(scope="module")
def scheduled() -> Quiet:
    one = Quiet("1", NUM_FRAMES, later_prompts=LATER)
    one.step()
    return one


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 8, 9, 10, 12])
def test_a_schedule_survives_a_kill(begin, scheduled, steps):
    service = begin(steps=steps)
    id = service.sessions.create(new("1", NUM_FRAMES, later_prompts=LATER)).id
    service.wait_for_steps(steps)
    again = begin(killed(service))
    again.wait_for(id)
    assert_recorded(again, id, scheduled.frames("a"), scheduled.sizes("a"))
    assert again.sessions.get(id).later_prompts == LATER
    assert not np.array_equal(scheduled.frames("a")[-1], scheduled.frames("a")[0])


@pytest.mark.parametrize("steps", [2, 7])
def test_a_checkpoint_at_the_end_of_the_service_has_the_rest_of_it(begin, scheduled, steps):
    service = begin(steps=steps)
    id = service.sessions.create(new("1", NUM_FRAMES, later_prompts=LATER)).id
    service.wait_for_steps(steps)
    service.close()
    again = begin()
    again.wait_for(id)
    assert_recorded(again, id, scheduled.frames("a"), scheduled.sizes("a"))


def test_forks_follow_the_schedule_unless_they_have_a_prompt(begin, scheduled):
    service = begin(steps=4)
    id = service.sessions.create(new("1", NUM_FRAMES, later_prompts=LATER)).id
    service.wait_for_steps(4)
    service.settle()
    same, own = service.sessions.fork(id, [NewFork(), NewFork(prompt="5")])
    service.let()
    for fork in (same.id, own.id):
        service.wait_for(fork)
    assert same.later_prompts == LATER and own.later_prompts == ()
    assert service.content(same.id) == service.content(id) != service.content(own.id)


def test_no_other_prompt_can_be_given(begin):
    service = begin(steps=1)
    id = service.sessions.create(new("1", NUM_FRAMES, later_prompts=LATER)).id
    with pytest.raises(Conflict, match="follows its own schedule of prompts; fork it with a prompt instead"):
        service.sessions.prompt(id, "7")


@pytest.mark.parametrize("later", [(LaterPrompt(NUM_FRAMES, "2"),), (LaterPrompt(1, "2"), LaterPrompt(2, "3"))])
def test_a_schedule_that_cannot_be_is_refused_and_nothing_is_left(begin, later):
    service = begin()
    with pytest.raises(ConfigError, match=r"must ascend and be below|would never show"):
        service.sessions.create(new("1", NUM_FRAMES, later_prompts=later))
    assert service.sessions.list().records == ()
