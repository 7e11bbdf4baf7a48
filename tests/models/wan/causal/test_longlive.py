"""LongLive on a Wan 2.2 transformer of 48 channels, with its VAE, against LongLive's own way with a dense cache
(longlive.py): from noise, and going on from given frames."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pagedvid.engine.requests import RequestFailure, VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.integrations.vae import VideoVae
from pagedvid.models.wan.causal.pipeline import WanCausal
from pagedvid.models.wan.causal.spec import WanCausalSettings
from pagedvid.models.wan.causal.wan_unipc import WanUniPC
from tests.engine.latent_bytes import video_of
from tests.integrations.tiny_parts import WAN22_5B, wan_vae
from tests.models.on_the_way import forks_of_given_chunks, through_a_file
from tests.models.wan.base.tiny import embeddings, engine_of, padded, tiny_transformer
from tests.models.wan.causal.longlive import longlive_rollout
from tests.models.wan.causal.self_forcing import SelfForcing

ROWS, COLUMNS, FRAMES_PER_CHUNK, NUM_CHUNKS = 4, 6, 2, 4
CHANNELS = {"in_channels": 48, "out_channels": 48}
ROW = embeddings(5)


def tiny_model(
    transformer=None, vae: VideoVae | None = None, decodes: bool = False, num_steps: int = 4, **changes
) -> WanCausal:
    """The settings of longlive-2-5b at toy size: a sink and two recent chunks."""
    size = {"latent_rows": ROWS, "latent_columns": COLUMNS, "frames_per_chunk": FRAMES_PER_CHUNK, "text_tokens": 6}
    window = {"sink_frames": FRAMES_PER_CHUNK, "window_frames": 4 * FRAMES_PER_CHUNK}
    sampler = WanUniPC(shift=5.0, num_steps=num_steps)
    settings = {**size, **window, "pixels_per_latent": 16, "fps": 24.0, "sampler": sampler, "name": "tiny", **changes}
    return WanCausal(
        tiny_transformer("WanTransformer3DModel", **CHANNELS) if transformer is None else transformer,
        WanCausalSettings(**settings),
        decoder=vae.stream if decodes else None,
        encode=None if vae is None else vae.encode,
    )


@pytest.fixture
def vae(tmp_path) -> VideoVae:
    wan_vae(**WAN22_5B).save_pretrained(tmp_path / "vae")
    return VideoVae(tmp_path / "vae")


def given_frames(num_chunks: int) -> Tensor:
    shape = (4 * (num_chunks * FRAMES_PER_CHUNK - 1) + 1, 16 * ROWS, 16 * COLUMNS, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def by_library(frames: Tensor) -> Tensor:
    """Latents [C, F, R, S] of given frames, in the scale of the model."""
    encoded = wan_vae(**WAN22_5B).encode((frames.float() / 127.5 - 1).permute(3, 0, 1, 2)[None]).latent_dist.mode()[0]
    mean, std = (torch.tensor(WAN22_5B[f"latents_{name}"]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    return (encoded - mean) / std


def longlive_video(transformer, model: WanCausal, seed: int, given: Sequence[Tensor] = ()) -> Tensor:
    settings, sampler = model.settings, model.settings.sampler
    reference = SelfForcing(transformer, model.geometry.tokens_per_frame, settings.sink_frames, settings.window_frames)
    chunks = range(len(given), len(given) + NUM_CHUNKS)
    noises = [model.grid_of(model.noise(seed, chunk)).transpose(0, 1) for chunk in chunks]
    return longlive_rollout(reference, noises, sampler.num_steps, sampler.shift, padded(ROW["prompt_embeds"]), given)


def request(name: str = "a", given_chunks: int = 0, seed: int = 4) -> VideoRequest:
    prefix = {"prefix": {"frames": given_frames(given_chunks)}} if given_chunks else {}
    return VideoRequest(name, "", NUM_CHUNKS * FRAMES_PER_CHUNK, seed, {"embeddings": ROW, **prefix})


def videos(engine, *requests: VideoRequest) -> dict[str, np.ndarray]:
    for one in requests:
        engine.submit(one)
    outputs = list(engine.run())
    assert [it for it in outputs if isinstance(it, RequestFailure)] == []
    return {one.id: np.concatenate([it.frames for it in outputs if it.request_id == one.id]) for one in requests}


@pytest.mark.parametrize(("sink_frames", "window_frames"), [(2, 8), (2, 6), (0, 4), (0, 8)])
@pytest.mark.parametrize("num_steps", [2, 4])
def test_videos_are_those_of_longlive(num_steps, sink_frames, window_frames):
    """Four chunks: all windows but the largest roll."""
    transformer = tiny_transformer("WanTransformer3DModel", **CHANNELS)
    reference = copy.deepcopy(transformer)
    window = {"sink_frames": sink_frames, "window_frames": window_frames}
    model = tiny_model(transformer, num_steps=num_steps, **window)
    found = videos(engine_of(model), request("a"), request("b", seed=7))
    for id, seed in (("a", 4), ("b", 7)):
        expected = longlive_video(reference, model, seed)
        assert expected.shape == (NUM_CHUNKS * FRAMES_PER_CHUNK, 48, ROWS, COLUMNS) and expected.std() > 0.1
        torch.testing.assert_close(torch.from_numpy(found[id]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("given_chunks", [1, 3])
def test_a_video_goes_on_from_frames_as_longlive_extends_one(vae, given_chunks):
    """The given chunks pass at timestep 0 and stay as history; more than the window keeps are evicted."""
    transformer = tiny_transformer("WanTransformer3DModel", **CHANNELS)
    reference = copy.deepcopy(transformer)
    model = tiny_model(transformer, vae)
    latents = torch.from_numpy(videos(engine_of(model), request(given_chunks=given_chunks))["a"])
    given = by_library(given_frames(given_chunks)).split(FRAMES_PER_CHUNK, dim=1)
    expected = longlive_video(reference, model, 4, given)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
    without = longlive_video(reference, model, 4, [0 * it for it in given])
    assert (without - expected).abs().max() > 0.01


def test_frames_go_on_where_the_vae_was(vae):
    """They are those of one call of the library that decodes given and new latents."""
    transformer = tiny_transformer("WanTransformer3DModel", **CHANNELS)
    latents = videos(engine_of(tiny_model(copy.deepcopy(transformer), vae)), request(given_chunks=1))["a"]
    frames = videos(engine_of(tiny_model(transformer, vae, decodes=True)), request(given_chunks=1))["a"]
    given = by_library(given_frames(1)).transpose(0, 1)
    whole = vae.decode(torch.cat([given, torch.from_numpy(latents)]))
    assert frames.shape == (4 * NUM_CHUNKS * FRAMES_PER_CHUNK, 16 * ROWS, 16 * COLUMNS, 3)
    distance = np.abs(frames.astype(int) - whole[len(given_frames(1)) :].astype(int))
    assert distance.max() <= 1 and (distance > 0).mean() < 1e-2


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_checkpoint_has_the_state_of_sampler_and_vae(vae, tmp_path, after):
    def new_engine():
        return engine_of(tiny_model(vae=vae, decodes=True))

    whole = videos(new_engine(), request(given_chunks=1))["a"]
    frames = through_a_file(new_engine, request(given_chunks=1), after, tmp_path / "a")
    assert frames.shape == whole.shape
    assert np.abs(frames.astype(int) - whole.astype(int)).max() <= 1


def test_forks_of_a_prefix_copy_no_page(vae):
    engine = engine_of(tiny_model(vae=vae))
    outputs = forks_of_given_chunks(engine, request("a", given_chunks=2), 2)
    np.testing.assert_allclose(video_of(outputs, "a"), video_of(outputs, "b"), atol=1e-4)


def test_frames_of_another_size_or_number_are_refused(vae):
    engine = engine_of(tiny_model(vae=vae))
    for frames, message in (
        (given_frames(1)[:, :48], r"uint8 \[5, 48, 96, 3\]; tiny takes uint8 \[N, 64, 96, 3\]"),
        (given_frames(2)[1:], "12 frames to go on from; tiny takes those of whole chunks: 5, 13, 21"),
    ):
        with pytest.raises(ConfigError, match=message):
            engine.submit(VideoRequest("a", "", 4, 4, {"embeddings": ROW, "prefix": {"frames": frames}}))
