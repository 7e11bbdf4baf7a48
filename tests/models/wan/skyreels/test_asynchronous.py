"""SkyReelsV2 with several blocks in flight: against the published pipeline itself, and where blocks are given, leave
the window or change their prompt, against a loop over diffusers' own model with dense keys and values
(dense_asynchronous.py)."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline, UniPCMultistepScheduler

from pagedvid.engine.requests import LaterPrompt, RequestFailure, VideoRequest
from pagedvid.integrations.vae import VideoVae
from pagedvid.models.wan.skyreels.pipeline import SkyReelsV2
from tests.integrations.tiny_parts import wan_vae
from tests.models.wan.base.tiny import FRAMES_PER_CHUNK, embeddings, engine_of, generate, padded, tiny_transformer
from tests.models.wan.skyreels.dense_asynchronous import DenseAsynchronous
from tests.models.wan.skyreels.test_prefix import conditions, model_with, video
from tests.models.wan.skyreels.test_rollout import BOTH, pipeline_scheduler, tiny_model

ROWS = embeddings(3, BOTH)
TEXTS = {"cond": padded(ROWS["prompt_embeds"]), "uncond": padded(ROWS["negative_prompt_embeds"])}
WINDOWS = [(0, 2), (1, 1), (1, 2)]
"""Sinks and recent blocks."""


def windowed(sinks: int, recents: int) -> dict[str, int]:
    frames = {"sink_frames": sinks, "window_frames": sinks + recents + 1}
    return {name: count * FRAMES_PER_CHUNK for name, count in frames.items()}


def noises_of(model, num_blocks: int, seed: int = 0) -> list[torch.Tensor]:
    return [model.grid_of(model.noise(seed, block)).transpose(0, 1) for block in range(num_blocks)]


class CopyingScheduler(UniPCMultistepScheduler):
    """The pipeline hands its scheduler views of its latents and overwrites them afterwards, also the one that the
    scheduler keeps of the first step for its corrector. This one keeps a copy, as the method needs it."""

    def step(self, model_output, timestep, sample, return_dict=True):
        return super().step(model_output, timestep, sample.clone(), return_dict)


@pytest.mark.parametrize(("num_steps", "ar_step"), [(4, 1), (5, 2), (3, 3), (3, 5)])
def test_a_video_is_that_of_the_published_pipeline(monkeypatch, num_steps, ar_step):
    """All of its code, with the noise of this video; 4 blocks, which the window holds."""
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel")
    reference = copy.deepcopy(transformer)
    model = tiny_model(transformer, ar_step=ar_step, num_denoise_steps=num_steps)
    latents = generate(engine_of(model), {"a": ROWS}, [4 * FRAMES_PER_CHUNK])["a"]
    noise = torch.cat(noises_of(model, 4), dim=1)[None]
    module = "diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda shape, **_: noise.reshape(shape))
    scheduler = CopyingScheduler.from_config(pipeline_scheduler().config)
    pipeline = SkyReelsV2DiffusionForcingPipeline(None, None, reference, wan_vae(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        None, height=48, width=80, num_frames=1 + 4 * (4 * FRAMES_PER_CHUNK - 1), base_num_frames=97,
        num_inference_steps=num_steps, guidance_scale=3.0, prompt_embeds=TEXTS["cond"],
        negative_prompt_embeds=TEXTS["uncond"], ar_step=ar_step, causal_block_size=FRAMES_PER_CHUNK,
        output_type="latent",
    ).frames  # fmt: skip
    assert expected.std() > 0.1
    torch.testing.assert_close(latents, expected[0].transpose(0, 1), rtol=0, atol=1e-4)
    synchronous = tiny_model(reference, num_denoise_steps=num_steps)
    other = generate(engine_of(synchronous), {"a": ROWS}, [4 * FRAMES_PER_CHUNK])["a"]
    assert (other - latents).abs().max() > 2e-3 or ar_step >= num_steps


@pytest.mark.parametrize(("sinks", "recents"), WINDOWS)
@pytest.mark.parametrize(("num_steps", "ar_step"), [(4, 2), (5, 3), (3, 3)])
def test_blocks_leave_the_window_when_new_ones_begin(sinks, recents, num_steps, ar_step):
    """9 blocks; positions start at 0 with the first one that is seen."""
    if num_steps // ar_step > recents:
        ar_step = num_steps // (recents + 1) + 1
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel")
    reference = DenseAsynchronous(copy.deepcopy(transformer), pipeline_scheduler(), num_steps, 3.0, sinks)
    model = tiny_model(transformer, ar_step=ar_step, num_denoise_steps=num_steps, **windowed(sinks, recents))
    latents = generate(engine_of(model), {"a": ROWS}, [9 * FRAMES_PER_CHUNK])["a"]
    expected = reference.rollout(noises_of(model, 9), ar_step, recents + 1, lambda row: TEXTS)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)


@pytest.fixture
def vae(tmp_path) -> VideoVae:
    wan_vae().save_pretrained(tmp_path / "vae")
    return VideoVae(tmp_path / "vae")


@pytest.mark.parametrize("addnoise_condition", [0, 20])
@pytest.mark.parametrize("given_blocks", [1, 4])
@pytest.mark.parametrize("ar_step", [1, 2])
def test_given_blocks_come_first(vae, given_blocks, addnoise_condition, ar_step):
    transformer, num_steps = tiny_transformer("SkyReelsV2Transformer3DModel"), 3
    reference = DenseAsynchronous(copy.deepcopy(transformer), pipeline_scheduler(), num_steps, 3.0, sinks=1)
    window = windowed(1, 4 if ar_step == 1 else 1)
    model = model_with(vae, transformer, addnoise_condition=addnoise_condition, ar_step=ar_step, **window)
    given, noises = conditions(model, given_blocks, share=addnoise_condition / 1000)
    how = (ar_step, 5 if ar_step == 1 else 2, lambda row: TEXTS, given, addnoise_condition)
    torch.testing.assert_close(video(model, given_blocks), reference.rollout(noises, *how), rtol=0, atol=1e-4)


class OneOfTwo:
    """A text encoder that knows two prompts."""

    def encode(self, prompt: str, max_tokens: int) -> dict[str, torch.Tensor]:
        rows = {"first": ROWS["prompt_embeds"], "second": embeddings(8)["prompt_embeds"]}.get(
            prompt, ROWS["negative_prompt_embeds"]
        )
        return {"embeddings": padded(rows)[0], "mask": (torch.arange(max_tokens) < len(rows)).long()}


@pytest.mark.parametrize("recache", [False, True])
@pytest.mark.parametrize("begins", [2, 4, 6])
def test_another_prompt_counts_for_all_blocks_in_flight_from_the_next_one_on(recache, begins):
    """Also for the clean pass of the block before them; with recache what is stored is computed again."""
    num_steps, ar_step = 4, 2
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel")
    reference = DenseAsynchronous(copy.deepcopy(transformer), pipeline_scheduler(), num_steps, 3.0, sinks=1)
    how = {"ar_step": ar_step, "num_denoise_steps": num_steps, **windowed(1, 3)}
    model = SkyReelsV2(transformer, tiny_model(copy.deepcopy(transformer), **how).settings, OneOfTwo())
    later = (LaterPrompt(begins * FRAMES_PER_CHUNK, "second", recache),)
    engine = engine_of(model)
    engine.submit(VideoRequest("a", "first", 8 * FRAMES_PER_CHUNK, 0, later_prompts=later))
    outputs = list(engine.run())
    assert not [output for output in outputs if isinstance(output, RequestFailure)]
    latents = torch.cat([torch.from_numpy(output.frames) for output in outputs])
    second = {**TEXTS, "cond": padded(embeddings(8)["prompt_embeds"])}
    switch = begins * ar_step
    again = [switch] if recache else []
    expected = reference.rollout(
        noises_of(model, 8), ar_step, 4, lambda row: second if row >= switch else TEXTS, again=again
    )
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
    assert engine.cache.pool.num_used_pages == 0
