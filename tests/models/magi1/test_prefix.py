"""Runs with a prefix: given chunks are stored as the published program stores chunks that became clean, and the video
goes on from them as from its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from pagedvid.cache.window import Window
from pagedvid.engine.requests import VideoRequest
from pagedvid.engine.schedule import Range
from pagedvid.models.magi1.pipeline import MagiModel, tokens_of
from pagedvid.models.magi1.schedule import magi_schedule
from pagedvid.models.magi1.times import times
from tests.engine.dense_reference import DenseBranch, as_given
from tests.engine.latent_bytes import video_of
from tests.models.magi1.recordings import (
    CHUNK_FRAMES,
    ROLLOUTS,
    TOLERANCE,
    engine_of,
    largest_difference,
    play,
    recorded_model,
    video_of_tokens,
)
from tests.models.on_the_way import forks_of_given_chunks

GUIDED = ROLLOUTS["w4_cfg3"]


def request(id: str, num_frames: int, prefix: torch.Tensor | None = None, seed: int = 0) -> VideoRequest:
    """A video of the recorded caption after the given latents [C, F, H, W]."""
    inputs = GUIDED.inputs if prefix is None else {**GUIDED.inputs, "prefix": {"latents": prefix}}
    return VideoRequest(id, "recorded", num_frames, seed, inputs)


def recorded_clean_pass(forward: int) -> torch.Tensor:
    """Velocities [C, F, H, W] of chunk 0 in the step that made its clean keys: in the forward with prompt (0) or in
    that of the history (1), whose keys the program keeps."""
    for call in GUIDED.calls:
        if call["call"] % 3 == forward and call["t"][0] == pytest.approx(0.9999):
            return GUIDED.data[f"call.{call['call']:03d}.velocity"][:, :CHUNK_FRAMES]
    raise AssertionError("there is no clean pass")


def test_a_given_chunk_of_a_guided_run_is_stored_by_the_recorded_pass():
    model = recorded_model(GUIDED)
    engine = engine_of(model, GUIDED.num_steps)
    engine.submit(request("a", CHUNK_FRAMES, GUIDED.data["final"][:, :CHUNK_FRAMES]))
    engine.step()
    ((ranges, _, velocities),) = model.forwards
    assert [(part.commits, part.noise_level) for part in ranges] == [(True, 0.9999)]
    assert largest_difference(video_of_tokens(velocities), recorded_clean_pass(1)) <= TOLERANCE
    assert largest_difference(recorded_clean_pass(0), recorded_clean_pass(1)) > 10 * TOLERANCE


@torch.inference_mode()
def dense_guided(model: MagiModel, prefix: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Latents [T, C] of the chunk after one given chunk: dense keys and values, three forwards a step, one after the
    other (`forward_3cfg` of the published program)."""
    condition = model.prepare("recorded", {**GUIDED.inputs, "prefix": {"latents": prefix}}, CHUNK_FRAMES)
    history = DenseBranch(model, Window(0, 4), as_given)

    def predicted(latents: torch.Tensor, chunk: int, time: float, role: str, sees: DenseBranch) -> torch.Tensor:
        part = Range(range(chunk * CHUNK_FRAMES, (chunk + 1) * CHUNK_FRAMES), time, role)
        return model.forward(latents, [part], [condition], sees)

    predicted(tokens_of(prefix), 0, 0.9999, "null", history)
    history.commit()
    latents = model.initial_latents(condition, 0, 1)
    for time, next_time in pairwise(times(num_steps)):
        alone = DenseBranch(model, Window(0, 4), as_given)
        sees = {"cond": history, "null": history, "uncond": alone}
        by_role = {role: predicted(latents, 1, time, role, branch) for role, branch in sees.items()}
        latents = model.advance(latents, by_role, time, next_time)
    return latents


def test_a_guided_video_goes_on_as_the_dense_loop_does():
    rollout = replace(GUIDED, sampling=replace(GUIDED.sampling, window_size=1))
    prefix = GUIDED.data["final"][:, :CHUNK_FRAMES]
    engine = engine_of(recorded_model(rollout), rollout.num_steps)
    engine.submit(request("a", CHUNK_FRAMES, prefix))
    final = play(engine).final["a"]
    dense = dense_guided(recorded_model(rollout), prefix, rollout.num_steps)
    assert largest_difference(final, video_of_tokens(dense)) <= TOLERANCE
    other = dense_guided(recorded_model(rollout), 0 * prefix, rollout.num_steps)
    assert largest_difference(final, video_of_tokens(other)) > 100 * TOLERANCE


@pytest.mark.parametrize("num_given", [1, 2])
def test_the_video_goes_on_from_given_chunks_as_from_its_own(num_given):
    """With one chunk in flight: of three chunks the first are made by one run and given to another.

    Without guidance: with it, a chunk's first step sees the clean keys of the forward with prompt, which no prefix has.
    """
    rollout = replace(GUIDED, sampling=replace(GUIDED.sampling, cfg_number=1, window_size=1, clean_chunk_kvrange=2))
    whole_run = engine_of(recorded_model(rollout), rollout.num_steps)
    whole_run.submit(request("a", 3 * CHUNK_FRAMES))
    whole = play(whole_run).final["a"]
    given = num_given * CHUNK_FRAMES
    engine = engine_of(recorded_model(rollout), rollout.num_steps)
    engine.submit(request("a", 3 * CHUNK_FRAMES - given, whole[:, :given]))
    rest = play(engine).final["a"]
    assert largest_difference(rest, whole[:, given:]) <= TOLERANCE
    other = engine_of(recorded_model(rollout), rollout.num_steps)
    other.submit(request("a", 3 * CHUNK_FRAMES - given, 0 * whole[:, :given]))
    assert largest_difference(play(other).final["a"], rest) > 100 * TOLERANCE


def test_guided_forks_of_a_prefix_copy_no_page():
    engine = engine_of(recorded_model(GUIDED), GUIDED.num_steps, memory="8MiB")
    given = request("a", CHUNK_FRAMES, GUIDED.data["final"][:, : 2 * CHUNK_FRAMES])
    outputs = forks_of_given_chunks(engine, given, 2)
    a, b, c = (torch.from_numpy(video_of(outputs, id)) for id in "abc")
    assert largest_difference(a, b) <= TOLERANCE < largest_difference(a, c)


@pytest.mark.parametrize(("cfg_number", "role"), [(1, "clean"), (3, "null")])
def test_the_role_of_the_prefix_pass_is_that_of_later_clean_passes(cfg_number, role):
    sampling = replace(GUIDED.sampling, cfg_number=cfg_number)
    rounds = magi_schedule(sampling, CHUNK_FRAMES, 8, 4 * CHUNK_FRAMES, 2 * CHUNK_FRAMES).rounds()
    stored = [part.role for round_ in rounds for part in round_.ranges if part.commits]
    assert len(stored) == 5 and set(stored) == {role}
