"""Videos of the demo model that go on from given frames: against the dense loop, and shared by forks."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.checkpoint_file import Origin, load_checkpoint, save_checkpoint
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import Continuation, LaterPrompt, VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.models.demo.network import Transformer
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.paged_kv_cache import PagedKVCache
from tests.engine.dense_reference import dense_video
from tests.engine.latent_bytes import frames_of_latents, latents_of_frames, video_of
from tests.engine.toy_model import ToyModel, assert_all_pages_free, toy_engine
from tests.engine.verbs import rest, state, steps

PROMPT, OTHER = "a large red circle moving left", "a small blue square moving up"
SIZE, DENOISE_STEPS, WINDOW = 8, 2, Window(1, 2, positions="window")
STEPS_PER_CHUNK = DENOISE_STEPS + 1


class LatentDemo(DemoModel):
    """The demo model whose frames are its latents, bit by bit."""

    def decode(self, latents_TC: Tensor) -> np.ndarray:
        return frames_of_latents(latents_TC, len(latents_TC) // self.geometry.tokens_per_frame)


@pytest.fixture(scope="module")
def model() -> LatentDemo:
    """Small and random, but no output is zero."""
    torch.manual_seed(0)
    network = Transformer(TransformerConfig(width=64, num_heads=1, num_layers=2))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    made = DemoModel.of(network)
    return LatentDemo(**{field.name: getattr(made, field.name) for field in fields(made)})


def engine_of(model: DemoModel, num_pages: int = 1200) -> Engine:
    geometry = model.geometry
    spec = CacheSpec(
        geometry.num_layers, geometry.num_kv_heads, geometry.head_dim, codecs=StreamCodecs("fp32"), debug_checks=True
    )
    cache = PagedKVCache(spec, num_pages * spec.shape.page_bytes)
    return Engine(model, cache, WINDOW, num_denoise_steps=DENOISE_STEPS, reproducible=True)


def given_frames(num_chunks: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (num_chunks * SIZE, 32, 32, 3), dtype=torch.uint8, generator=generator)


def request(name: str = "a", given_chunks: int = 2, chunks: int = 3, **settings: object) -> VideoRequest:
    inputs = {"prefix": {"frames": given_frames(given_chunks)}} if given_chunks else {}
    return VideoRequest(name, PROMPT, chunks * SIZE, seed=3, inputs=inputs, **settings)


def alone(model: DemoModel, video: VideoRequest) -> np.ndarray:
    engine = engine_of(model)
    engine.submit(video)
    outputs = rest(engine)
    assert_all_pages_free(engine)
    return video_of(outputs, video.id)


@pytest.mark.parametrize("given_chunks", [0, 1, 2, 3, 5])
def test_the_video_goes_on_as_the_dense_loop_does(model: LatentDemo, given_chunks: int) -> None:
    """Five given chunks are more than the window keeps."""
    latents = latents_of_frames(alone(model, request(given_chunks=given_chunks)))
    given = model.encode(given_frames(given_chunks)).split(SIZE * 16) if given_chunks else ()
    with torch.inference_mode():
        dense = dense_video(model, PROMPT, 3, 3, DENOISE_STEPS, WINDOW, given=given)
    assert latents.shape == dense.shape
    assert float((latents - dense).abs().max()) <= 1e-4
    if given_chunks:
        other = dense_video(model, PROMPT, 3, 3, DENOISE_STEPS, WINDOW, given=[torch.zeros_like(it) for it in given])
        assert float((other - dense).abs().max()) > 1e-2


def test_given_frames_are_encoded_as_they_are_decoded() -> None:
    model = DemoModel.of(Transformer(TransformerConfig(width=64, num_heads=1, num_layers=1)))
    frames = given_frames(1)
    np.testing.assert_array_equal(model.decode(model.encode(frames)), frames.numpy())


def test_only_new_frames_come_out_and_are_counted(model: LatentDemo) -> None:
    engine = engine_of(model)
    engine.submit(replace(request(given_chunks=2), num_frames=SIZE + 3))
    outputs = rest(engine)
    assert [(it.chunk_index, len(it.frames), it.is_last) for it in outputs] == [(2, SIZE, False), (3, 3, True)]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_forks_share_the_given_chunks_and_copy_none(model: LatentDemo, after: int) -> None:
    """Whether they are asked for before the given chunks are stored, in the midst of it, or after it."""
    engine = engine_of(model)
    engine.submit(request(given_chunks=2))
    steps(engine, after)
    engine.fork("a", [Continuation("b", seed=9), Continuation("c", prompt=OTHER)])
    steps(engine, 2 - after)
    used = engine.cache.pool.num_used_pages
    pages = {video.id: (video.own_pages, video.shared_pages) for video in engine.videos()}
    assert used > 0 and pages == {name: (0, used) for name in "abc"}
    outputs = rest(engine)
    np.testing.assert_array_equal(video_of(outputs, "a"), alone(model, request()))
    np.testing.assert_array_equal(video_of(outputs, "b"), alone(model, replace(request(), seed=9)))
    assert len(video_of(outputs, "c")) == 3 * SIZE
    assert_all_pages_free(engine)


def test_forks_of_a_video_that_cannot_begin_fail_with_it(model: LatentDemo, monkeypatch) -> None:
    """They wait for its given chunks."""

    def broken(self: LatentDemo, condition: object) -> None:
        raise RuntimeError("no decoder")

    engine = engine_of(model)
    engine.submit(request())
    engine.fork("a", [Continuation("b")])
    with monkeypatch.context() as patch:
        patch.setattr(LatentDemo, "decoder", broken)
        failures = {it.request_id: str(it.error) for it in rest(engine)}
    assert failures.keys() == {"a", "b"} and "'a', which it continues, ended" in failures["b"]
    assert engine.videos() == ()
    engine.submit(request("b"))
    np.testing.assert_array_equal(video_of(rest(engine), "b"), alone(model, request("b")))


@pytest.mark.parametrize("after", range(7))
def test_a_checkpoint_goes_on_without_the_file(model: LatentDemo, tmp_path, after: int) -> None:
    engine = engine_of(model)
    engine.submit(request())
    outputs = steps(engine, after)
    origin = Origin(model.name, model.geometry, engine.cache.spec, engine.window, DENOISE_STEPS, {}, {})
    save_checkpoint(tmp_path / "a", engine.checkpoint("a"), origin)
    other = engine_of(model)
    other.restore(load_checkpoint(tmp_path / "a", origin))
    np.testing.assert_array_equal(video_of(outputs + rest(other), "a"), alone(model, request()))


def test_prompts_take_over_by_frames_of_the_new_video(model: LatentDemo) -> None:
    """With recache, the given chunks are stored again: as if they had been given under that prompt."""
    frames = alone(model, request(later_prompts=(LaterPrompt(SIZE, OTHER, recache=True),)))
    np.testing.assert_array_equal(frames[:SIZE], alone(model, request())[:SIZE])
    engine = engine_of(model)
    engine.submit(request())
    outputs = steps(engine, 2 + STEPS_PER_CHUNK)
    engine.prompt("a", OTHER, recache=True)
    np.testing.assert_array_equal(frames, video_of(outputs + rest(engine), "a"))


def test_a_pause_waits_until_the_given_chunks_are_stored(model: LatentDemo) -> None:
    engine = engine_of(model)
    engine.submit(request())
    steps(engine, 1)
    engine.pause("a")
    assert state(engine, "a") == "running"
    assert steps(engine, 3) == [] and state(engine, "a") == "paused"
    engine.resume("a")
    np.testing.assert_array_equal(video_of(rest(engine), "a"), alone(model, request()))


def test_a_longer_video_is_the_same_to_begin_with(model: LatentDemo) -> None:
    engine = engine_of(model)
    engine.submit(request(chunks=1, keep=True))
    outputs = rest(engine)
    engine.extend("a", 3 * SIZE)
    np.testing.assert_array_equal(video_of(outputs + rest(engine), "a"), alone(model, request()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": given_frames(1)[:7]}, "7 frames to go on from; demo takes those of whole chunks: 8, 16, 24"),
        ({"frames": given_frames(1)[:0]}, "0 frames to go on from"),
        ({"frames": given_frames(1)[:, :16]}, r"\[8, 16, 32, 3\]; demo takes uint8 \[N, 32, 32, 3\]"),
        ({"frames": given_frames(1).float()}, "torch.float32"),
        ({"frames": "a.png"}, 'demo takes a table with "frames"'),
        ({"frames": given_frames(1), "mask": 1}, 'demo takes a table with "frames"'),
        ("a.png", 'demo takes a table with "frames"'),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused_at_once(model: LatentDemo, given: object, message: str) -> None:
    engine = engine_of(model)
    with pytest.raises(ConfigError, match=message):
        engine.submit(replace(request(), inputs={"prefix": given}))
    assert not engine.has_work


def test_other_inputs_are_refused(model: LatentDemo) -> None:
    with pytest.raises(ConfigError, match="takes a prompt and frames to go on from; remove camera"):
        engine_of(model).submit(replace(request(), inputs={"camera": "left"}))


def test_a_family_that_takes_none_refuses() -> None:
    assert ToyModel().prefix_format(WINDOW) is None
    with pytest.raises(ConfigError, match="takes a prompt only; remove prefix"):
        toy_engine().submit(VideoRequest("a", "1", 3, inputs={"prefix": {"frames": given_frames(1)}}))
