"""The demo model behind the `VideoModel` protocol, its files, and what the shipped weights can do."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from pagedvid.engine.protocol import VideoModel
from pagedvid.engine.schedule import Range
from pagedvid.errors import ConfigError, PromptError, ShapeError
from pagedvid.models.demo.network import Transformer
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.demo.weights import SHIPPED_WEIGHTS, load_demo, save_weights
from pagedvid.rotary.tables import rotate


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return load_demo()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_weights(Transformer(TransformerConfig(width=64, num_heads=1, num_layers=1)), tmp_path, {"steps": 0})
    return tmp_path


class FirstChunkAttend:
    """`Attend` of packed first chunks: each sees itself only."""

    def __init__(self, model: VideoModel) -> None:
        self.cos, self.sin = model.rope.tables(0, model.geometry.chunk_tokens)

    def __call__(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        q, k, v = (x.view(-1, len(self.cos), *x.shape[1:]) for x in (q_THD, k_THD, v_THD))
        cos, sin = self.cos.unsqueeze(1), self.sin.unsqueeze(1)
        heads_first = (rotate(q, cos, sin), rotate(k, cos, sin), v)
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in heads_first))
        return out.transpose(1, 2).reshape(q_THD.shape)


def first_chunks(model: VideoModel, prompts: list[str], seed: int) -> np.ndarray:
    """First chunks of several prompts in one batch, uint8 [prompts, frames, height, width, 3]."""
    size = model.geometry.chunk_tokens
    conditions = [model.encode_prompt(prompt) for prompt in prompts]
    latents = model.initial_noise(seed, 0).repeat(len(prompts), 1)
    attend = FirstChunkAttend(model)
    levels = model.noise_levels(8)
    for level, next_level in itertools.pairwise(levels):
        ranges = [Range(range(model.geometry.frames_per_chunk), level)] * len(conditions)
        prediction = model.forward(latents, ranges, conditions, attend)
        latents = model.advance(latents, {"cond": prediction}, level, next_level)
    return np.stack([model.decode(chunk) for chunk in latents.split(size)])


def test_geometry_of_the_shipped_model(model: VideoModel) -> None:
    geometry = model.geometry
    assert (geometry.head_dim, geometry.tokens_per_frame, geometry.frames_per_chunk) == (64, 16, 8)
    assert geometry.chunk_tokens == 128
    assert geometry.branches == ("cond",)
    assert model.name == "demo" and model.max_window_chunks == 6
    assert sum(file.stat().st_size for file in SHIPPED_WEIGHTS.iterdir()) <= 16 * 2**20


@pytest.mark.parametrize("num_steps", [1, 4, 8, 20])
def test_noise_levels_fall_from_one_to_zero(model: VideoModel, num_steps: int) -> None:
    levels = model.noise_levels(num_steps)
    assert len(levels) == num_steps + 1
    assert levels[0] == 1.0 and levels[-1] == 0.0
    assert all(later < earlier for earlier, later in itertools.pairwise(levels))


def test_no_denoise_step_is_an_error(model: VideoModel) -> None:
    with pytest.raises(ConfigError, match=r"num_denoise_steps is 0"):
        model.noise_levels(0)


def test_noise_is_decided_by_seed_and_chunk(model: VideoModel) -> None:
    noise = model.initial_noise(5, 2)
    assert noise.shape == (128, 192) and noise.dtype == torch.float32
    assert torch.equal(noise, model.initial_noise(5, 2))
    for other in (model.initial_noise(5, 3), model.initial_noise(6, 2), model.initial_noise(2, 5)):
        assert abs(torch.corrcoef(torch.stack([noise.ravel(), other.ravel()]))[0, 1]) < 0.05
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03


def test_advance_walks_the_straight_line_between_clean_and_noise(model: VideoModel) -> None:
    clean, noise = torch.randn(2, 128, 192).unbind()
    half = model.advance(noise, {"cond": clean}, 1.0, 0.5)
    assert torch.allclose(half, (clean + noise) / 2, atol=1e-6)
    assert torch.allclose(model.advance(half, {"cond": clean}, 0.5, 0.0), clean, atol=1e-6)


def test_decode_scales_and_clips(model: VideoModel) -> None:
    latents = torch.full((128, 192), -1.0)
    latents[:16], latents[16:32] = 0.0, 3.0
    frames = model.decode(latents)
    assert frames.shape == (8, 32, 32, 3) and frames.dtype == np.uint8
    assert set(frames[0].ravel()) == {128} and set(frames[1].ravel()) == {255} and set(frames[2].ravel()) == {0}


def test_ranges_of_another_size_are_an_error(model: VideoModel) -> None:
    condition = model.encode_prompt("a red circle")
    with pytest.raises(ShapeError, match=r"\[64\].*128"):
        model.forward(torch.zeros(64, 192), [Range(range(4), 1.0)], [condition], FirstChunkAttend(model))


def test_a_prompt_without_known_words_is_an_error(model: VideoModel) -> None:
    with pytest.raises(PromptError, match=r"'a dragon'"):
        model.encode_prompt("a dragon")


def test_a_batch_of_prompts_gives_what_each_prompt_gives_alone(model: VideoModel) -> None:
    prompts = ["a small green square moving up on a teal background", "a large white triangle bouncing on navy"]
    together = first_chunks(model, prompts, seed=3).astype(int)
    for frames, prompt in zip(together, prompts, strict=True):
        assert np.abs(frames - first_chunks(model, [prompt], seed=3)[0]).max() <= 1


def test_saved_weights_load_again(folder: Path) -> None:
    network = load_demo(folder).network
    torch.manual_seed(0)
    original = Transformer(network.config).state_dict()
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, original[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ConfigError, match=f"{file} is missing"):
        load_demo(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{", "cannot be read as JSON"),
        *((content, "is not a config of the demo model") for content in ("[]", "{}", '{"architecture": {}}')),
    ],
)
def test_a_broken_config_is_named(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"config.json {message}"):
        load_demo(folder)


def test_a_config_of_another_version_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocabulary": [*config["vocabulary"], "dragon"]}))
    with pytest.raises(ConfigError, match=r"vocabulary differs.*dragon"):
        load_demo(folder)
    config["architecture"]["num_wheels"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"num_wheels.*allowed: latent_channels"):
        load_demo(folder)


def test_weights_cut_short_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"model.safetensors cannot be read"):
        load_demo(folder)


def test_missing_and_surplus_keys_and_wrong_shapes_are_listed(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    renamed = {("placez" if name == "places" else name): tensor for name, tensor in tensors.items()}
    save_file(renamed, path)
    with pytest.raises(ConfigError, match=r"missing keys places; surplus keys placez"):
        load_demo(folder)
    save_file(tensors | {"places": torch.zeros(4, 64)}, path)
    with pytest.raises(ConfigError, match=r"places \[4, 64\] instead of \[128, 64\]"):
        load_demo(folder)


def test_shipped_weights_paint_the_named_color_on_the_named_background(model: VideoModel) -> None:
    prompts = ["a large red circle moving left on a black background", "a large blue square staying still on gray"]
    red, blue = first_chunks(model, prompts, seed=1).astype(int)
    is_red = (red[..., 0] > 170) & (red[..., 1:].max(axis=-1) < 90)
    is_blue = (blue[..., 2] > 190) & (blue[..., 0] < 110)
    for share in (is_red.mean(axis=(1, 2)), is_blue.mean(axis=(1, 2))):
        assert share.min() > 0.1 and share.max() < 0.35
    assert (red.max(axis=-1) < 60).mean() > 0.6
    assert (np.abs(blue - 104).max(axis=-1) < 25).mean() > 0.5
