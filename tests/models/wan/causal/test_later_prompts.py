"""WanCausal with another prompt on the way, also behind given frames, against Self-Forcing's own way with a dense cache
whose kept chunks are computed again under that prompt."""

from __future__ import annotations

import copy

import pytest
import torch

from pagedvid.engine.requests import LaterPrompt, VideoRequest
from pagedvid.integrations.vae import VideoVae
from pagedvid.models.wan.causal.pipeline import WanCausal
from tests.integrations.tiny_parts import wan_vae
from tests.models.wan.base.tiny import FRAMES_PER_CHUNK, embeddings, engine_of, padded, tiny_transformer
from tests.models.wan.causal.self_forcing import LaterText
from tests.models.wan.causal.test_prefix import by_library, given_frames, video
from tests.models.wan.causal.test_rollout import self_forcing_video, tiny_model

ROWS = {"first": embeddings(5)["prompt_embeds"], "second": embeddings(8)["prompt_embeds"]}
NUM_CHUNKS = 5
WINDOWS = {"all": (0, 30), "one recent": (0, 6), "sink and one": (3, 9), "two sinks and two": (6, 15)}
"""Frames of the sinks, and of sinks, recent chunks and the current one."""


class OneOfTwo:
    """A text encoder that knows two prompts."""

    def encode(self, prompt: str, max_tokens: int) -> dict[str, torch.Tensor]:
        rows = ROWS[prompt]
        return {"embeddings": padded(rows)[0], "mask": (torch.arange(max_tokens) < len(rows)).long()}


@pytest.fixture
def vae(tmp_path) -> VideoVae:
    wan_vae().save_pretrained(tmp_path / "vae")
    return VideoVae(tmp_path / "vae")


def videos(vae, window: str, begins: int, given_chunks: int, *, recache: bool):
    """Latents of a video whose prompt changes at chunk `begins`: the engine's, and what Self-Forcing's way makes with
    and without recaching."""
    sink_frames, window_frames = WINDOWS[window]
    transformer = tiny_transformer("WanTransformer3DModel")
    reference = copy.deepcopy(transformer)
    settings = tiny_model(transformer, sink_frames=sink_frames, window_frames=window_frames).settings
    model = WanCausal(transformer, settings, OneOfTwo(), encode=vae.encode)
    inputs = {"prefix": {"frames": given_frames(given_chunks)}} if given_chunks else {}
    later = (LaterPrompt(begins * FRAMES_PER_CHUNK, "second", recache),)
    asked = VideoRequest("a", "first", NUM_CHUNKS * FRAMES_PER_CHUNK, 4, inputs, later_prompts=later)
    engine = engine_of(model)
    latents = torch.from_numpy(video(engine, asked)["a"])
    assert engine.cache.pool.num_used_pages == 0
    given = by_library(given_frames(given_chunks)).split(FRAMES_PER_CHUNK, dim=1) if given_chunks else ()
    return latents, {
        again: self_forcing_video(
            copy.deepcopy(reference),
            model,
            4,
            ROWS["first"],
            NUM_CHUNKS,
            given,
            LaterText(begins, padded(ROWS["second"]), again),
        )
        for again in (recache, not recache)
    }


@pytest.mark.parametrize("given_chunks", [0, 2])
@pytest.mark.parametrize("begins", [1, 4])
@pytest.mark.parametrize("window", WINDOWS)
def test_recached_the_video_goes_on_as_if_what_is_kept_had_been_made_under_the_later_prompt(
    vae, window, begins, given_chunks
):
    latents, expected = videos(vae, window, begins, given_chunks, recache=True)
    torch.testing.assert_close(latents, expected[True], rtol=0, atol=1e-4)
    assert (expected[True] - expected[False]).abs().max() > 1e-3


@pytest.mark.parametrize("given_chunks", [0, 2])
def test_without_recaching_what_is_kept_speaks_of_the_first_prompt(vae, given_chunks):
    latents, expected = videos(vae, "sink and one", 2, given_chunks, recache=False)
    torch.testing.assert_close(latents, expected[False], rtol=0, atol=1e-4)
