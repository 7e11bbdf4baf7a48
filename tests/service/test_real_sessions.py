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
from pagedvid.engine.requests import ChunkOutput, Continuation, VideoRequest
from pagedvid.output.fragments import decoded, fragment, init_segment
from pagedvid.service.checkpoint_files import OriginFiles
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

    def __init__(self, prompt: str, num_frames: int) -> None:
        self.engine = engine()
        self.engine.service = self
        self.outputs: list = []
        self.engine.submit(VideoRequest("a", prompt, num_frames, seed=3, keep=True))

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
