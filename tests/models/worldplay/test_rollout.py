"""The recorded rollouts of 32 latent frames in 8 chunks, free-running, through the engine and the paged cache."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.engine.requests import VideoRequest
from tests.models.worldplay.recordings import (
    NUM_CHUNKS,
    TOLERANCE,
    VARIANTS,
    calls,
    max_error,
    memory_frames,
    tokens_of,
)
from tests.models.worldplay.rollout import make_engine, make_model, recorded_final, request, run, watched


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_call_and_the_final_latents(variant):
    """fp32 pages. Measured: 3.3e-6 in the calls, 2.7e-6 in the latents."""
    model = make_model(variant)
    with watched(model) as seen:
        final = run(make_engine(model), [request(variant)])["recorded"]
    recorded = calls(variant)
    for name, (timesteps, output) in seen.named().items():
        assert max_error(timesteps, recorded[f"{name}.timestep"]) < 1e-3, name
        if not name.endswith("mem"):  # the prediction of a memory pass is not used
            assert max_error(output, tokens_of(variant, recorded[f"{name}.output"][0])) < TOLERANCE, name
    assert max_error(final, recorded_final(variant)) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_pages_deviate_by_rounding_alone(variant):
    """Keys and values of the memory rounded to 8 bits of mantissa, relative 2^-9; the network amplifies it a little.

    Measured maximum over all 8 chunks: 0.0018 (8B), 0.0032 (WAN); latents have a standard deviation of about 1.
    """
    final = run(make_engine(make_model(variant), "bf16"), [request(variant)])["recorded"]
    deviation = max_error(final, recorded_final(variant))
    assert 1e-4 < deviation < 0.01
    assert max_error(final[:4], recorded_final(variant)[:4]) < TOLERANCE  # the first chunk reads no pages


# ---------------------------------------------------------------------- batches


def other_videos(variant: str) -> list[VideoRequest]:
    """The recorded video, another seed, and a shorter one that starts elsewhere on the trajectory."""
    return [
        request(variant),
        request(variant, "other seed", seed=5),
        request(variant, "short", seed=7, first_frame=8, num_frames=12),
    ]


@lru_cache
def alone(variant: str, codec: str, number: int) -> Tensor:
    asked = other_videos(variant)[number]
    return run(make_engine(make_model(variant), codec), [asked])[asked.id]


@pytest.mark.parametrize("codec", ["fp32", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_videos_in_one_batch_equal_each_alone(variant, codec):
    """They start one after the other, so that memory passes and denoise steps of different chunks share forwards.

    A batch of another size sums in another order, and a last bit can turn a quantizer's code over: with int8 that is
    visible (a step is 1/255 of a channel's range), though far from the 0.3 that any mix-up of videos causes.
    """
    engine = make_engine(make_model(variant), codec)
    requests, parts, mixed = other_videos(variant), {}, 0
    waiting = list(requests)
    while waiting or engine.has_work:
        if waiting and engine.stats().num_steps in (0, 6, 13):
            engine.submit(waiting.pop(0))
        for output in engine.step():
            parts.setdefault(output.request_id, []).append(torch.from_numpy(output.frames))
        at = {job.round.ranges[0].role for job in engine._roster.jobs.values()}
        mixed += len(at) > 1
    assert mixed > 5
    for number, asked in enumerate(requests):
        together = torch.cat(parts[asked.id])
        assert len(together) == asked.num_frames
        assert max_error(together, alone(variant, codec, number)) < (1e-5 if codec == "fp32" else 0.02)


# ---------------------------------------------------------------------- memory


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_memory_is_held_at_a_time_and_none_of_it_twice(variant):
    """Pages of a memory: its tokens, once; the stream's peak is the longest memory; nothing is left at the end."""
    model = make_model(variant)
    engine = make_engine(model, "int2")
    engine.submit(request(variant))
    held = []
    while engine.has_work:
        engine.step()
        used = engine.cache.stats().pages_used
        if not held or held[-1] != used:
            held.append(used)
    shape, size = engine.cache.spec.shape, model.geometry.tokens_per_frame
    int2, memories = ChunkCodecs.read("int2"), [memory_frames(variant, chunk) for chunk in range(1, NUM_CHUNKS)]
    expected = [shape.chunk_pages(size * len(frames), int2) for frames in memories]
    assert set(held) == {0, *expected}
    assert engine.cache.pool.peak_used_pages == max(expected)
