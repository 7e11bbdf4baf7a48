"""Every recorded rollout, free-running through the engine and the paged cache."""

from __future__ import annotations

import pytest
import torch

from tests.models.magi1.recordings import (
    CHUNK_FRAMES,
    ROLLOUTS,
    TOLERANCE,
    Rollout,
    engine_of,
    largest_difference,
    play,
    recorded_model,
    video_of_tokens,
)


@pytest.mark.parametrize("rollout", ROLLOUTS.values(), ids=ROLLOUTS)
def test_all_calls_and_the_final_latents_are_those_recorded(rollout: Rollout):
    model = recorded_model(rollout)
    engine = engine_of(model, rollout.num_steps)
    engine.submit(rollout.request())
    final = play(engine).final["a"]
    assert largest_difference(final, rollout.data["final"]) <= TOLERANCE
    assert len(model.forwards) == len(rollout.calls)
    moved = iter(model.moved)
    for call, (ranges, _, velocities) in zip(rollout.calls, model.forwards, strict=True):
        assert [part.noise_level for part in ranges] == pytest.approx(call["t"], abs=1e-6)
        recorded = rollout.data[f"call.{call['call']:03d}.velocity"]
        if recorded.ndim == 5:  # the unconditional call has its chunks on a batch axis
            recorded = torch.cat(list(recorded), dim=1)
        assert largest_difference(video_of_tokens(velocities), recorded) <= TOLERANCE, call["call"]
        expected = rollout.data.get(f"call.{call['call']:03d}.x_next")
        if expected is not None:
            chunks = [video_of_tokens(next(moved)) for _ in range(expected.shape[1] // CHUNK_FRAMES)]
            # Given frames are put in anew in every call, so what the sampler makes of them does not matter.
            first_frame = min(part.frames[0] for part in ranges if part.role != "clean")
            num_given = max(0, rollout.num_prefix_frames - first_frame)
            moved_here = torch.cat(chunks, dim=1)[:, num_given:]
            assert largest_difference(moved_here, expected[:, num_given:]) <= TOLERANCE, call["call"]
    assert next(moved, None) is None


@pytest.mark.parametrize("rollout", ROLLOUTS.values(), ids=ROLLOUTS)
def test_chunks_come_out_one_by_one_in_order(rollout: Rollout):
    engine = engine_of(recorded_model(rollout), rollout.num_steps)
    engine.submit(rollout.request())
    played = play(engine)
    finished = [call["finished_chunk"] for call in rollout.calls if "finished_chunk" in call]
    assert played.chunk_indices["a"] == sorted(set(finished))
    assert engine.cache.pool.num_used_pages == 0 and engine.cache.reserved_pages == 0
