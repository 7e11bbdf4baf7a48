"""SkyReelsV2 going on from given frames with its own conditioning: a little noise, and the timestep of it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pagedvid.cache.window import Window
from pagedvid.engine.requests import RequestFailure, VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.integrations.vae import VideoVae
from pagedvid.models.wan.skyreels.pipeline import SkyReelsV2
from pagedvid.models.wan.skyreels.spec import PUBLISHED, SkyReelsSettings
from tests.engine.latent_bytes import video_of
from tests.integrations.tiny_parts import wan_vae
from tests.models.on_the_way import forks_of_given_chunks
from tests.models.wan.base.tiny import FRAMES_PER_CHUNK, embeddings, engine_of, padded, tiny_transformer
from tests.models.wan.causal.test_prefix import by_library, given_frames
from tests.models.wan.skyreels.dense_window import DenseWindow
from tests.models.wan.skyreels.full_sequence import GIVEN_TIMESTEP, rollout
from tests.models.wan.skyreels.test_rollout import BOTH, NUM_STEPS, pipeline_scheduler, tiny_model

NUM_CHUNKS, SEED = 2, 4
ROWS = embeddings(3, BOTH)


@pytest.fixture
def vae(tmp_path) -> VideoVae:
    wan_vae().save_pretrained(tmp_path / "vae")
    return VideoVae(tmp_path / "vae")


def model_with(vae: VideoVae, transformer, decodes: bool = False, **changes) -> SkyReelsV2:
    settings = tiny_model(copy.deepcopy(transformer), **changes).settings
    return SkyReelsV2(transformer, settings, decoder=vae.stream if decodes else None, encode=vae.encode)


def request(given_chunks: int) -> VideoRequest:
    inputs = {"embeddings": ROWS, "prefix": {"frames": given_frames(given_chunks)}}
    return VideoRequest("a", "", NUM_CHUNKS * FRAMES_PER_CHUNK, SEED, inputs)


def video(model: SkyReelsV2, given_chunks: int) -> torch.Tensor:
    engine = engine_of(model)
    engine.submit(request(given_chunks))
    outputs = list(engine.run())
    assert [it for it in outputs if isinstance(it, RequestFailure)] == []
    return torch.from_numpy(np.concatenate([it.frames for it in outputs]))


def conditions(model: SkyReelsV2, given_chunks: int, share: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Given blocks with that share of noise, as the pipeline mixes it, and the noises of the new ones."""
    noises = [model.grid_of(model.noise(SEED, chunk)).transpose(0, 1) for chunk in range(given_chunks + NUM_CHUNKS)]
    clean = by_library(given_frames(given_chunks)).split(FRAMES_PER_CHUNK, dim=1)
    mixed = [x * (1.0 - share) + noise * share for x, noise in zip(clean, noises, strict=False)]
    return mixed, noises[given_chunks:]


@pytest.mark.parametrize("given_chunks", [1, 2])
def test_the_video_goes_on_as_the_whole_sequence_does(vae, given_chunks):
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel")
    reference = copy.deepcopy(transformer)
    reference._set_ar_attention(FRAMES_PER_CHUNK)
    model = model_with(vae, transformer, positions="absolute")
    latents = video(model, given_chunks)
    given, noises = conditions(model, given_chunks, share=0.02)
    texts = [padded(ROWS[name]) for name in ("prompt_embeds", "negative_prompt_embeds")]
    expected = rollout(reference, noises, pipeline_scheduler(), NUM_STEPS, texts, 3.0, given)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
    clean, _ = conditions(model, given_chunks, share=0.0)
    without_noise = rollout(reference, noises, pipeline_scheduler(), NUM_STEPS, texts, 3.0, clean)
    assert (without_noise - expected).abs().max() > 1e-3


@pytest.mark.parametrize("addnoise_condition", [0, GIVEN_TIMESTEP])
@pytest.mark.parametrize("given_chunks", [1, 4])
def test_given_blocks_leave_the_window_as_others_do(vae, given_chunks, addnoise_condition):
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel")
    reference = DenseWindow(copy.deepcopy(transformer), sinks=1, recents=1)
    window = {"sink_frames": FRAMES_PER_CHUNK, "window_frames": 3 * FRAMES_PER_CHUNK}
    model = model_with(vae, transformer, addnoise_condition=addnoise_condition, **window)
    given, noises = conditions(model, given_chunks, share=addnoise_condition / 1000)
    texts = {"cond": padded(ROWS["prompt_embeds"]), "uncond": padded(ROWS["negative_prompt_embeds"])}
    how = (pipeline_scheduler(), NUM_STEPS, texts, 3.0, given, addnoise_condition)
    torch.testing.assert_close(video(model, given_chunks), reference.rollout(noises, *how), rtol=0, atol=1e-4)


@pytest.mark.parametrize("ar_step", [0, 2])
def test_forks_copy_no_page(vae, ar_step):
    """Of either branch, and also where several blocks are in flight; the noise on given blocks is that of "a"."""
    window = {"sink_frames": FRAMES_PER_CHUNK, "window_frames": 3 * FRAMES_PER_CHUNK}
    model = model_with(vae, tiny_transformer("SkyReelsV2Transformer3DModel"), ar_step=ar_step, **window)
    given = request(given_chunks=2)
    outputs = forks_of_given_chunks(engine_of(model), given, 2)
    a, b, c = (torch.from_numpy(video_of(outputs, id)) for id in "abc")
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    torch.testing.assert_close(a, video(model, 2), rtol=0, atol=1e-4)
    assert (a - c).abs().max() > 0.1


def test_decoded_frames_go_on_where_the_vae_was(vae):
    """It hears the given frames without the noise."""
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel")
    latents = video(model_with(vae, copy.deepcopy(transformer)), 1)
    frames = video(model_with(vae, transformer, decodes=True), 1).numpy()
    whole = vae.decode(torch.cat([by_library(given_frames(1)).transpose(0, 1), latents]))
    assert len(frames) == 4 * NUM_CHUNKS * FRAMES_PER_CHUNK
    distance = np.abs(frames.astype(int) - whole[len(given_frames(1)) :].astype(int))
    assert distance.max() <= 1 and (distance > 0).mean() < 1e-2


@pytest.mark.parametrize("timestep", [8, 20, 60])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_transformer_is_told_the_timestep_that_is_set(name, timestep):
    shift = PUBLISHED[name][1].shift
    settings = SkyReelsSettings(addnoise_condition=timestep, shift=shift)
    model = tiny_model(addnoise_condition=timestep, shift=shift)
    assert model.sampler.timestep(settings.prefix_level) == timestep
    assert PUBLISHED[name][1].addnoise_condition == GIVEN_TIMESTEP


def test_a_timestep_that_the_sampler_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="addnoise_condition is 3; with shift 8 it must be 0 or at least 8"):
        SkyReelsSettings(addnoise_condition=3)


def test_without_a_vae_nothing_can_be_gone_on_from():
    with pytest.raises(ConfigError, match="tiny has no VAE to encode given frames with"):
        tiny_model().prefix_format(Window(1, 1))
