"""Several videos at different chunks and stages in one engine, each as if alone. The original runs one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from torch import Tensor

from pagedvid.engine.requests import VideoRequest
from tests.models.magi1.recordings import (
    ROLLOUTS,
    Rollout,
    engine_of,
    largest_difference,
    play,
    recorded_model,
)

CHUNK_TOKENS = 36
CASES = [*((rollout, "fp32", 2e-5) for rollout in ROLLOUTS.values()), (ROLLOUTS["w1"], "int8", 4e-3)]
"""Rollout, codec, tolerance. Float32 sums differ with the batch; in a quantized page that tips single codes."""


def videos(rollout: Rollout) -> list[VideoRequest]:
    """Three videos: other noise, other captions, other lengths."""
    first = rollout.request("first")
    captions = first.inputs["embeddings"]
    turned = {name: tensor.flip(0) for name, tensor in captions.items()}
    return [
        first,
        replace(first, id="second", seed=5, num_frames=first.num_frames - 4),
        replace(first, id="third", seed=11, num_frames=5, inputs={**first.inputs, "embeddings": turned}),
    ]


def together(rollout: Rollout, requests: Sequence[VideoRequest], codec: str, **settings) -> dict[str, Tensor]:
    """Each request arrives a step after the one before."""
    engine = engine_of(recorded_model(rollout), rollout.num_steps, codec, **settings)
    for request in requests[:-1]:
        engine.submit(request)
        assert engine.step() == []
    engine.submit(requests[-1])
    final = play(engine).final
    assert engine.cache.pool.num_used_pages == 0
    return final


@pytest.mark.parametrize(("rollout", "codec", "tolerance"), CASES, ids=[f"{case[0].name}-{case[1]}" for case in CASES])
def test_each_video_of_a_batch_is_what_it_is_alone(rollout: Rollout, codec: str, tolerance: float):
    requests = videos(rollout)[: 2 if "prefix" in rollout.name else 3]
    alone = {request.id: together(rollout, [request], codec)[request.id] for request in requests}
    shortest = min(video.shape[1] for video in alone.values())
    assert largest_difference(alone["first"][:, :shortest], alone["second"][:, :shortest]) > 0.5
    for settings in ({"policy": "round_robin"}, {"max_batch_tokens": 6 * CHUNK_TOKENS, "policy": "round_robin"}):
        batch = together(rollout, requests, codec, **settings)
        for id, video in alone.items():
            assert largest_difference(batch[id], video) <= tolerance, (id, settings)


def test_videos_do_share_forwards_at_different_stages():
    rollout = ROLLOUTS["w4"]
    model = recorded_model(rollout)
    engine = engine_of(model, rollout.num_steps, policy="round_robin")
    for request in videos(rollout):
        engine.submit(request)
        for _ in range(3):
            engine.step()
    ranges, conditions, _ = model.forwards[-1]
    levels = {}
    for part, condition in zip(ranges, conditions, strict=True):
        levels.setdefault(id(condition), []).append(part.noise_level)
    assert len(levels) == 3 and len({tuple(level) for level in levels.values()}) == 3
    engine.close()
