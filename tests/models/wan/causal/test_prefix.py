"""WanCausal going on from given frames: Wan's VAE encodes them, Self-Forcing's own way goes on from the latents."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pagedvid.cache.window import Window
from pagedvid.engine.requests import RequestFailure, VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.integrations.vae import VideoVae
from pagedvid.models.wan.causal.pipeline import WanCausal
from tests.engine.latent_bytes import video_of
from tests.integrations.tiny_parts import wan_vae
from tests.models.on_the_way import forks_of_given_chunks, through_a_file
from tests.models.wan.base.tiny import COLUMNS, FRAMES_PER_CHUNK, ROWS, embeddings, engine_of, tiny_transformer
from tests.models.wan.causal.test_rollout import self_forcing_video, tiny_model

PIXELS = 8
"""Of a latent."""
NUM_CHUNKS = 3
ROW = embeddings(5)


@pytest.fixture
def vae(tmp_path) -> VideoVae:
    wan_vae().save_pretrained(tmp_path / "vae")
    return VideoVae(tmp_path / "vae")


def given_frames(num_chunks: int) -> torch.Tensor:
    shape = (4 * (num_chunks * FRAMES_PER_CHUNK - 1) + 1, PIXELS * ROWS, PIXELS * COLUMNS, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def by_library(frames: torch.Tensor) -> torch.Tensor:
    """Latents [C, F, R, S] as diffusers' pipelines make them of given frames."""
    library = wan_vae()
    x = (frames.float() / 127.5 - 1).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        latents = library.encode(x).latent_dist.mode()
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (library.config.latents_mean, library.config.latents_std)
    )
    return ((latents - mean) * (1.0 / std))[0]


def model_with(vae: VideoVae, transformer=None, decodes: bool = False, **changes) -> WanCausal:
    plain = tiny_model(transformer, **changes)
    return WanCausal(
        tiny_transformer("WanTransformer3DModel") if transformer is None else transformer,
        plain.settings,
        decoder=vae.stream if decodes else None,
        encode=vae.encode,
    )


def request(name: str = "a", given_chunks: int = 2) -> VideoRequest:
    inputs = {"embeddings": ROW, "prefix": {"frames": given_frames(given_chunks)}}
    return VideoRequest(name, "", NUM_CHUNKS * FRAMES_PER_CHUNK, 4, inputs)


def video(engine, *requests: VideoRequest) -> dict[str, np.ndarray]:
    for one in requests:
        engine.submit(one)
    outputs = list(engine.run())
    assert [it for it in outputs if isinstance(it, RequestFailure)] == []
    return {one.id: np.concatenate([it.frames for it in outputs if it.request_id == one.id]) for one in requests}


def test_frames_are_encoded_as_the_library_does(vae):
    frames = given_frames(2)
    ours = vae.encode(frames)
    assert ours.shape == (6, 4, ROWS, COLUMNS) and ours.dtype == torch.float32
    torch.testing.assert_close(ours.transpose(0, 1), by_library(frames), rtol=1e-5, atol=1e-5)
    assert ours.std() > 0.05
    torch.testing.assert_close(vae.encode(frames), ours)
    assert vae._vae.encoder is None, "it takes no room on the device"


@pytest.mark.parametrize(("sink_frames", "window_frames"), [(0, 15), (0, 6), (3, 9)])
@pytest.mark.parametrize("given_chunks", [1, 2, 4])
def test_the_video_goes_on_as_self_forcing_does(vae, given_chunks, sink_frames, window_frames):
    """Where more chunks are given than the window keeps, the first of them are evicted there, too."""
    transformer = tiny_transformer("WanTransformer3DModel")
    reference = copy.deepcopy(transformer)
    model = model_with(vae, transformer, sink_frames=sink_frames, window_frames=window_frames)
    latents = torch.from_numpy(video(engine_of(model), request(given_chunks=given_chunks))["a"])
    given = by_library(given_frames(given_chunks)).split(FRAMES_PER_CHUNK, dim=1)
    rows = ROW["prompt_embeds"]
    expected = self_forcing_video(reference, model, 4, rows, NUM_CHUNKS, given)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
    without = self_forcing_video(reference, model, 4, rows, NUM_CHUNKS, [0 * it for it in given])
    assert (without - expected).abs().max() > 0.01


def test_frames_go_on_where_the_vae_was(vae):
    """They are those of one call that decodes given and new latents, without the given ones; none of them is lost,
    and the first latent frame gives four."""
    transformer = tiny_transformer("WanTransformer3DModel")
    latents = video(engine_of(model_with(vae, copy.deepcopy(transformer))), request())["a"]
    frames = video(engine_of(model_with(vae, transformer, decodes=True)), request())["a"]
    given = by_library(given_frames(2)).transpose(0, 1)
    whole = vae.decode(torch.cat([given, torch.from_numpy(latents)]))
    assert frames.shape[0] == 4 * NUM_CHUNKS * FRAMES_PER_CHUNK == len(whole) - len(given_frames(2))
    distance = np.abs(frames.astype(int) - whole[len(given_frames(2)) :].astype(int))
    assert distance.max() <= 1 and (distance > 0).mean() < 1e-2


@pytest.mark.parametrize("after", [0, 1, 2, 6, 7, 11])
def test_a_checkpoint_has_all_that_it_needs(vae, tmp_path, after):
    def new_engine():
        return engine_of(model_with(vae, decodes=True))

    whole = video(new_engine(), request())["a"]
    frames = through_a_file(new_engine, request(), after, tmp_path / "a")
    assert frames.shape == whole.shape
    assert np.abs(frames.astype(int) - whole.astype(int)).max() <= 1


def test_forks_copy_no_page_and_videos_share_a_batch(vae):
    engine = engine_of(model_with(vae))
    outputs = forks_of_given_chunks(engine, request("a"), 2)
    np.testing.assert_allclose(video_of(outputs, "a"), video_of(outputs, "b"), atol=1e-4)
    both = video(engine_of(model_with(vae)), request("x"), VideoRequest("y", "", 9, 4, {"embeddings": ROW}))
    np.testing.assert_allclose(both["x"], video(engine_of(model_with(vae)), request("x"))["x"], atol=1e-4)


def test_the_format_is_that_of_the_window(vae):
    format = model_with(vae, sink_frames=3, window_frames=12).prefix_format(Window(9, 9))
    assert (format.frames.height, format.frames.width, format.frames_per_chunk) == (48, 80, 3)
    assert format.max_chunks == 3 and format.num_frames(2) == 21 and format.num_chunks(20) == 1


def test_without_a_vae_nothing_can_be_gone_on_from(vae):
    model = tiny_model()
    with pytest.raises(ConfigError, match="tiny has no VAE to encode given frames with"):
        model.prefix_format(Window(1, 1))
    with pytest.raises(ConfigError, match='takes the input "embeddings" only; remove prefix'):
        engine_of(model).submit(request())
    with pytest.raises(ConfigError, match="20 frames to go on from; tiny takes those of whole chunks: 9, 21, 33"):
        engine_of(model_with(vae)).submit(
            VideoRequest("a", "", 9, 4, {"embeddings": ROW, "prefix": {"frames": given_frames(2)[1:]}})
        )
