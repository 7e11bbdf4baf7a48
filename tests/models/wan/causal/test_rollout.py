"""WanCausal in the engine, against Self-Forcing's own way with a dense cache (self_forcing.py)."""

from __future__ import annotations

import copy

import pytest
import torch

from pagedvid.models.wan.causal.pipeline import WanCausal
from pagedvid.models.wan.causal.spec import WanCausalSettings
from tests.models.wan.base.tiny import (
    FRAMES_PER_CHUNK,
    SIZE,
    embeddings,
    engine_of,
    generate,
    padded,
    tiny_transformer,
)
from tests.models.wan.causal.self_forcing import SelfForcing

NUM_CHUNKS = 7


def tiny_model(transformer=None, **changes):
    return WanCausal(
        tiny_transformer("WanTransformer3DModel") if transformer is None else transformer,
        WanCausalSettings(**{**SIZE, "name": "tiny", **changes}),
    )


def self_forcing_video(transformer, model, seed, rows, num_chunks=NUM_CHUNKS, given=(), later=None):
    settings = model.settings
    reference = SelfForcing(transformer, model.geometry.tokens_per_frame, settings.sink_frames, settings.window_frames)
    sampler, channels = settings.sampler, model.grid.token_channels
    noises = [
        [
            model.grid_of(draw).transpose(0, 1)
            for draw in model.noise(seed, chunk, sampler.num_draws).split(channels, dim=1)
        ]
        for chunk in range(len(given), len(given) + num_chunks)
    ]
    return reference.rollout(noises, list(sampler.timesteps), sampler.shift, padded(rows), given, later)


@pytest.mark.parametrize(
    ("sink_frames", "window_frames"),
    [(0, 3 * NUM_CHUNKS), (0, 6), (3, 9), (6, 15)],
    ids=["all-visible", "one-recent-chunk", "sink-and-one", "two-sinks-and-two"],
)
def test_window_and_sinks_are_those_of_self_forcing(sink_frames, window_frames):
    """The window of frames counts sinks and current chunk; 7 chunks make every case but the first roll."""
    transformer = tiny_transformer("WanTransformer3DModel")
    reference = copy.deepcopy(transformer)
    model = tiny_model(transformer, sink_frames=sink_frames, window_frames=window_frames)
    rows = embeddings(5)
    video = generate(engine_of(model), {"a": rows}, [NUM_CHUNKS * FRAMES_PER_CHUNK])["a"]
    expected = self_forcing_video(reference, model, 0, rows["prompt_embeds"])
    assert expected.std() > 0.1
    torch.testing.assert_close(video, expected, rtol=1e-4, atol=2e-5)
