"""SkyReelsV2 in the engine, against diffusers' own model: over whole sequences (full_sequence.py) and, where blocks
are evicted, with dense keys and values (dense_window.py)."""

from __future__ import annotations

import copy

import pytest
import torch

from pagedvid.models.wan.skyreels.pipeline import SkyReelsV2
from pagedvid.models.wan.skyreels.spec import SkyReelsSettings
from tests.models.wan.base.tiny import (
    FRAMES_PER_CHUNK,
    SIZE,
    embeddings,
    engine_of,
    generate,
    padded,
    tiny_transformer,
)
from tests.models.wan.skyreels.dense_window import DenseWindow
from tests.models.wan.skyreels.full_sequence import rollout

NUM_CHUNKS, NUM_STEPS = 5, 3
BOTH = ("cond", "uncond")
WINDOW = {"sink_frames": FRAMES_PER_CHUNK, "window_frames": NUM_CHUNKS * FRAMES_PER_CHUNK}


def pipeline_scheduler():
    """As the published pipeline's, for text to video."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)


def tiny_model(transformer=None, **changes):
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel") if transformer is None else transformer
    settings = {**SIZE, **WINDOW, "name": "tiny", "num_denoise_steps": NUM_STEPS, "guidance_scale": 3.0, **changes}
    return SkyReelsV2(transformer, SkyReelsSettings(**settings))


@pytest.mark.parametrize("positions", ["absolute", "window"])
@pytest.mark.parametrize("fps", [None, 16.0, 24.0])
def test_chunk_by_chunk_is_the_whole_sequence_under_the_block_mask(positions, fps):
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel", inject_sample_info=fps is not None)
    reference = copy.deepcopy(transformer)
    reference._set_ar_attention(FRAMES_PER_CHUNK)
    model = tiny_model(transformer, positions=positions, **({} if fps is None else {"fps": fps}))
    rows = embeddings(3, BOTH)
    video = generate(engine_of(model), {"a": rows}, [NUM_CHUNKS * FRAMES_PER_CHUNK])["a"]
    noises = [model.grid_of(model.noise(0, chunk)).transpose(0, 1) for chunk in range(NUM_CHUNKS)]
    how = {} if fps is None else {"fps": [int(fps != 16.0)]}
    texts = [padded(rows[name]) for name in ("prompt_embeds", "negative_prompt_embeds")]
    expected = rollout(reference, noises, pipeline_scheduler(), NUM_STEPS, texts, 3.0, **how)
    assert expected.std() > 0.1
    torch.testing.assert_close(video, expected, rtol=1e-4, atol=5e-5)


def test_a_checkpoint_that_brings_its_own_block_mask_runs_without_it():
    """Its mask would be made for every call, and counts frames from the call's first."""
    masked = tiny_transformer("SkyReelsV2Transformer3DModel", num_frame_per_block=2)
    frames = [2 * FRAMES_PER_CHUNK]
    videos = [
        generate(engine_of(tiny_model(transformer)), {"a": embeddings(3, BOTH)}, frames)["a"]
        for transformer in (masked, tiny_transformer("SkyReelsV2Transformer3DModel"))
    ]
    assert torch.equal(*videos)


@pytest.mark.parametrize(("sinks", "recents"), [(1, 1), (0, 2), (2, 1)])
def test_evicted_blocks_are_gone_and_those_that_stay_move_together(sinks, recents):
    """7 blocks; positions start at 0 with the first block that is seen."""
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel")
    reference = DenseWindow(copy.deepcopy(transformer), sinks, recents)
    sink_frames, window_frames = (FRAMES_PER_CHUNK * chunks for chunks in (sinks, sinks + recents + 1))
    model = tiny_model(transformer, sink_frames=sink_frames, window_frames=window_frames)
    rows = embeddings(4, BOTH)
    video = generate(engine_of(model), {"a": rows}, [7 * FRAMES_PER_CHUNK])["a"]
    noises = [model.grid_of(model.noise(0, chunk)).transpose(0, 1) for chunk in range(7)]
    texts = {"cond": padded(rows["prompt_embeds"]), "uncond": padded(rows["negative_prompt_embeds"])}
    expected = reference.rollout(noises, pipeline_scheduler(), NUM_STEPS, texts, 3.0)
    torch.testing.assert_close(video, expected, rtol=1e-4, atol=1e-4)
