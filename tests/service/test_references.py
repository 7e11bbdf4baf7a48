"""Sessions that go on from a picture or a video, over a real engine with a small demo model: the file is kept with the
session, and what a kill interrupts ends bit by bit as in an engine that nobody interrupted."""

from __future__ import annotations

import io
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pagedvid.engine.checkpoint_file import Origin
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError, IntegrityError
from pagedvid.models.demo.network import Transformer
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.output.fragments import fragment, init_segment
from pagedvid.output.mp4 import VideoWriter
from pagedvid.service.checkpoint_files import OriginFiles
from pagedvid.service.records import NewFork, NewSession, Reference
from tests.engine.latent_bytes import video_of
from tests.engine.test_prefix import DENOISE_STEPS, OTHER, PROMPT, SIZE, engine_of
from tests.service.services import VIDEO, Gated, Service

NUM_FRAMES = 3 * SIZE


def small_model() -> DemoModel:
    torch.manual_seed(0)
    network = Transformer(TransformerConfig(width=64, num_heads=1, num_layers=2))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return DemoModel.of(network)


class GatedDemo(Gated, Engine):
    pass


class DemoService(Service):
    def __init__(self, folder: Path, **options) -> None:
        plain = engine_of(small_model())
        origin = Origin("demo", plain.model.geometry, plain.cache.spec, plain.window, DENOISE_STEPS)
        self.checkpoint_files = OriginFiles(origin)
        super().__init__(folder, **options)

    def make_engine(self) -> Gated:
        made = engine_of(small_model())
        made.__class__ = GatedDemo
        return made


@pytest.fixture
def begin(tmp_path):
    services = []

    def start(name: str = "data", **options) -> DemoService:
        services.append(DemoService(tmp_path / name, **options))
        return services[-1]

    yield start
    for service in services:
        service.close()


PICTURE = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def png(pixels: np.ndarray = PICTURE) -> Reference:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return Reference("image", content.getvalue())


def new(reference: Reference | None, **more) -> NewSession:
    return NewSession(PROMPT, NUM_FRAMES, 3, reference=reference, **more)


def frames_after(given: np.ndarray) -> np.ndarray:
    """By one engine, asked directly."""
    engine = engine_of(small_model())
    prefix = {"frames": torch.from_numpy(given)}
    engine.submit(VideoRequest("a", PROMPT, NUM_FRAMES, 3, {"prefix": prefix}))
    return video_of(list(engine.run()), "a")


def recorded(frames: np.ndarray) -> bytes:
    content, rate = init_segment(*frames.shape[1:3], Fraction(VIDEO.frames_per_second)), Fraction(16)
    for number, first in enumerate(range(0, len(frames), SIZE), start=1):
        content += fragment(frames[first : first + SIZE], first, rate, number)
    return content


@pytest.fixture(scope="module")
def still() -> bytes:
    """What a session that goes on from the picture records."""
    return recorded(frames_after(np.repeat(PICTURE[None], SIZE, axis=0)))


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 8])
def test_it_survives_a_kill_and_a_move_of_the_folder(begin, still, steps, tmp_path):
    service = begin(steps=steps)
    session = service.sessions.create(new(png()))
    assert session.goes_on
    service.wait_for_steps(steps)
    service.settle()
    shutil.copytree(service.folder, tmp_path / "killed")
    shutil.move(service.folder / "sessions" / session.id / "input_reference", tmp_path / "elsewhere")
    again = begin("killed")
    again.wait_for(session.id)
    assert again.content(session.id) == still
    assert again.names(session.id) >= {"input_reference", "video.mp4"}


@pytest.mark.parametrize("steps", [2, 5])
def test_it_survives_the_end_of_the_service(begin, still, steps):
    service = begin(steps=steps)
    id = service.sessions.create(new(png())).id
    service.wait_for_steps(steps)
    service.close()
    again = begin()
    again.wait_for(id)
    assert again.content(id) == still


def test_an_engine_that_breaks_reads_the_file_again(begin, still):
    service = begin(steps=2)
    id = service.sessions.create(new(png())).id
    service.wait_for_steps(2)

    def break_engine() -> list:
        raise IntegrityError("page 7 is in two chunks")

    service.engines[-1].step = break_engine
    service.let()
    service.wait_for(id)
    assert len(service.engines) == 2 and service.content(id) == still


@pytest.mark.parametrize("steps", [0, 2, 5])
def test_forks_have_their_own_file_and_share_the_pages(begin, still, steps):
    service = begin(steps=steps)
    id = service.sessions.create(new(png())).id
    service.wait_for_steps(steps)
    service.settle()
    same, other = service.sessions.fork(id, [NewFork(), NewFork(OTHER, num_frames=NUM_FRAMES + SIZE)])
    service.let()
    for fork in (same, other):
        service.wait_for(fork.id)
        assert "input_reference" in service.names(fork.id)
    assert service.engines[-1].stats().num_forks == 2
    assert service.content(same.id) == still
    service.sessions.delete(id)
    service.sessions.extend(other.id, NUM_FRAMES + 2 * SIZE)
    service.wait_for(other.id)


def test_a_video_is_gone_on_from(begin, tmp_path):
    writer = VideoWriter(tmp_path / "given.mp4", 12.0, scale=4)
    writer.add(np.arange(0, 240, 15, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8))
    writer.finish()
    writer.publish()
    service = begin()
    id = service.sessions.create(new(Reference("video", (tmp_path / "given.mp4").read_bytes()))).id
    assert service.wait_for(id).frames_done == NUM_FRAMES
    assert len(service.content(id)) > 1000


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (png(PICTURE[:16]), r"^input_reference has 32 x 16 pixels \(width x height\); allowed are 32 x 32"),
        (Reference("image", png().content[:300]), "^input_reference cannot be read"),
        (Reference("video", png().content), "^input_reference has .* it takes the 8 frames of a chunk"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_nothing_is_left(begin, reference, message):
    """Messages do not say where the service keeps it."""
    service = begin()
    with pytest.raises(ConfigError, match=message) as error:
        service.sessions.create(new(reference))
    assert str(service.folder) not in str(error.value)
    assert service.sessions.list().records == ()
    assert list((service.folder / "sessions").iterdir()) == []
