"""The walk model behind the `VideoModel` protocol: through paged caches it makes what a plain dense loop makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.checkpoint_file import Origin, load_checkpoint, save_checkpoint
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.engine.schedule import Range
from pagedvid.errors import ConfigError, PromptError, ShapeError
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.walk.actions import read_walk
from pagedvid.models.walk.network import Transformer
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.models.walk.spec import (
    CHUNK_TOKENS,
    FRAME_SIZE,
    LATENT_CHANNELS,
    VIEW_CELLS,
    cells_of,
    frames_of,
    map_latents,
)
from pagedvid.models.walk.world import render
from tests.models.walk.dense import dense_latents, rotated
from tests.models.walk.untrained import NUM_STEPS, engine_of, random_network

PROMPTS = ("map 5: right 3, down 2, left 3, up 2", "up-left 4, down-right 4")


@pytest.fixture(scope="module")
def model() -> WalkModel:
    return WalkModel.of(random_network())


def videos_of(engine: Engine, prompts: tuple[str, ...], num_frames: int) -> list[np.ndarray]:
    """Frames of each prompt, made together."""
    for number, prompt in enumerate(prompts):
        engine.submit(VideoRequest(str(number), prompt, num_frames, seed=number))
    parts: dict[str, list[np.ndarray]] = {}
    for output in engine.run():
        assert isinstance(output, ChunkOutput), output
        engine.cache.check()
        parts.setdefault(output.request_id, []).append(output.frames)
    assert engine.cache.pool.num_used_pages == 0
    return [np.concatenate(parts[str(number)]) for number in range(len(prompts))]


def assert_alike(frames: np.ndarray, latents: Tensor, most: int) -> None:
    assert np.abs(frames.astype(int) - frames_of(latents)[: len(frames)]).max() <= most


@pytest.mark.parametrize(("codec", "most"), [("fp32", 1), ("bf16", 6)])
@pytest.mark.parametrize("kept", [2, 8])
def test_two_walks_in_one_batch_are_what_a_dense_loop_makes_of_each(model: WalkModel, codec: str, most: int, kept: int):
    videos = videos_of(engine_of(model, codec, Window(0, kept, "given")), PROMPTS, 11)
    for seed, (prompt, frames) in enumerate(zip(PROMPTS, videos, strict=True)):
        assert frames.shape == (11, FRAME_SIZE, FRAME_SIZE, 3)
        assert_alike(frames, dense_latents(model, prompt, seed, 6, kept), most)


@pytest.mark.parametrize("codec", ["int8", "int2"])
def test_quantized_and_corrected_histories_run_at_given_positions(model: WalkModel, codec: str):
    (frames,) = videos_of(engine_of(model, codec, Window(1, 3, "given")), PROMPTS[:1], 9)
    expected = frames_of(dense_latents(model, PROMPTS[0], 0, 5, 8))[:9]
    assert np.array_equal(frames[:2], expected[:2])
    assert np.abs(frames.astype(int) - expected).mean() < {"int8": 1, "int2": 12}[codec]


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_a_walk_goes_on_from_a_checkpoint_in_a_file(model: WalkModel, after: int, tmp_path: Path):
    window = Window(1, 3, "given")
    (expected,) = videos_of(engine_of(model, "int8/int4", window), PROMPTS[:1], 9)
    first, second = engine_of(model, "int8/int4", window), engine_of(model, "int8/int4", window)
    first.submit(VideoRequest("0", PROMPTS[0], 9))
    outputs = [output for _ in range(after) for output in first.step()]
    origin = Origin(model.name, model.geometry, first.cache.spec, window, NUM_STEPS)
    save_checkpoint(tmp_path / "walk", first.checkpoint("0"), origin)
    second.restore(load_checkpoint(tmp_path / "walk", origin))
    outputs += second.run()
    assert np.array_equal(np.concatenate([output.frames for output in outputs]), expected)


@pytest.mark.parametrize("num_frames", [2, 5])
def test_a_walk_is_extended(model: WalkModel, num_frames: int):
    window = Window(0, 3, "given")
    (expected,) = videos_of(engine_of(model, "bf16", window), PROMPTS[:1], 9)
    engine = engine_of(model, "bf16", window)
    engine.submit(VideoRequest("0", PROMPTS[0], num_frames, keep=True))
    outputs = list(engine.run())
    engine.extend("0", 9)
    outputs += engine.run()
    assert np.array_equal(np.concatenate([output.frames for output in outputs]), expected)


def test_a_named_map_gives_the_first_frames(model: WalkModel):
    (frames,) = videos_of(engine_of(model, "bf16", Window(0, 4, "given")), ("map 9: down, right",), 3)
    for frame, (row, column) in zip(frames[:2], [(0, 0), (1, 0)], strict=True):
        assert np.array_equal(frame, render(9, row, column, VIEW_CELLS, VIEW_CELLS))
    assert not np.array_equal(frames[2], render(9, 1, 1, VIEW_CELLS, VIEW_CELLS))


@pytest.mark.parametrize("num_frames", [1, 2])
def test_given_frames_alone_are_a_video(model: WalkModel, num_frames: int):
    (frames,) = videos_of(engine_of(model, "bf16", Window(0, 4, "given")), ("map 9: down",), num_frames)
    assert len(frames) == num_frames


def test_only_places_relative_to_each_other_matter(model: WalkModel):
    """The same walk far from the origin: float32 tables and float64 angles keep scores exact enough."""
    latents = torch.randn(2 * CHUNK_TOKENS, LATENT_CHANNELS)
    levels = torch.tensor([0.0, 0.7])

    def predicted(origin: tuple[int, int]) -> Tensor:
        places = [[origin[0] + f, origin[1] - f] for f in range(4)]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = rotated(q, places), rotated(k, places)
            return F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)

        return model.network(latents, levels, attend)

    assert torch.allclose(predicted((0, 0)), predicted((-100_000, 2_000_000)), atol=1e-3)


def test_cells_and_frames_are_each_others_inverse():
    image = render(1, 4, 4, VIEW_CELLS, VIEW_CELLS)
    cells = cells_of(image)
    assert cells.shape == (8, 8, LATENT_CHANNELS) and np.abs(cells).max() <= 1
    assert np.array_equal(frames_of(torch.from_numpy(cells).flatten(0, 1)), image[None])
    pixels = (cells[2, 3].reshape(8, 8, 3) + 1) * 127.5
    assert np.allclose(pixels, image[16:24, 24:32], atol=1e-3)


def test_geometry(model: WalkModel):
    geometry = model.geometry
    assert (geometry.tokens_per_frame, geometry.frames_per_chunk, geometry.chunk_tokens) == (64, 2, 128)
    assert (geometry.num_layers, geometry.num_kv_heads, geometry.head_dim, geometry.branches) == (2, 2, 64, ("cond",))
    network = Transformer(TransformerConfig(num_layers=4))
    assert 2 * sum(parameter.numel() for parameter in network.parameters()) < 16e6


def test_a_new_network_looks_at_its_own_cell():
    """What training begins with: the first head gives most of its weight to the same cell of an earlier frame."""
    torch.manual_seed(0)
    network = Transformer(TransformerConfig(num_layers=1))
    weights: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = rotated(q, [[0, 0]] * 2), rotated(k, [[0, 0]] * 2)
        weights.append((q[64:, 0] @ k[:64, 0].T / 8).softmax(dim=-1))
        return v

    with torch.no_grad():
        network(torch.randn(CHUNK_TOKENS, LATENT_CHANNELS), torch.zeros(1), attend)
    assert (weights[0].argmax(dim=-1) == torch.arange(64)).float().mean() > 0.7
    assert weights[0].diagonal().mean() > 0.3


def test_a_new_network_copies_from_history_and_hears_no_pure_noise():
    torch.manual_seed(0)
    network, walk = Transformer(TransformerConfig()), read_walk("right")
    clean = torch.from_numpy(map_latents(6, walk.places(2)))
    places = walk.places(2).tolist()

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = rotated(q, places * 2), rotated(k, places * 2)
        outs = [
            F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q[own], k[seen], v[seen]))).transpose(0, 1)
            for own, seen in ((slice(128), slice(128)), (slice(128, 256), slice(256)))
        ]
        return torch.cat(outs)

    def copied(noise: Tensor) -> Tensor:
        return network(torch.cat([clean, noise]), torch.tensor([0.0, 1.0]), attend)[128:]

    first, second = (copied(torch.randn(clean.shape)) for _ in range(2))
    assert torch.equal(first, second)
    patches = (first - first.mean(dim=0)), (clean - clean.mean(dim=0))
    assert F.cosine_similarity(*patches, dim=1).mean() > 0.5


def test_what_is_not_a_walk_is_refused(model: WalkModel):
    with pytest.raises(PromptError, match="is no action"):
        model.prepare("a red circle", {}, 8)
    with pytest.raises(ConfigError, match="takes a prompt and frames to go on from; remove camera"):
        model.prepare("left", {"camera": 1}, 8)
    with pytest.raises(ShapeError, match="every range of walk is one chunk of 128"):
        model.forward(torch.zeros(64, 192), [Range(range(1), 1.0)], [None], lambda *_: None)
    walk = model.prepare("left 9000", {}, 8)
    with pytest.raises(ConfigError, match="at most 10000 can be planned"):
        model.schedule(walk, 30_000, None, Window(0, 4, "given"))
    with pytest.raises(ConfigError, match="num_denoise_steps is 0"):
        model.schedule(walk, 8, 0, Window(0, 4, "given"))
