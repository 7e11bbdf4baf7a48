"""What comes out of the engine, when, and what it reports about itself."""

from __future__ import annotations

import pytest
import torch

from pagedvid.cache.plan import QueryRange
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.errors import ConfigError
from tests.engine.latent_bytes import latents_of_frames, video_of
from tests.engine.toy_model import (
    CHUNK_TOKENS,
    FRAMES_PER_CHUNK,
    HEAD_DIM,
    KV_HEADS,
    NUM_LAYERS,
    QUERY_HEADS,
    ToyModel,
    ToyRope,
    assert_all_pages_free,
    toy_engine,
)


@pytest.mark.parametrize(
    ("num_frames", "per_chunk"), [(1, [1]), (3, [3]), (4, [3, 1]), (9, [3, 3, 3]), (11, [3, 3, 3, 2])]
)
def test_frames_are_cut_to_the_number_that_was_asked_for(num_frames, per_chunk):
    engine = toy_engine()
    engine.submit(VideoRequest("a", "1", num_frames))
    engine.submit(VideoRequest("longer", "1", 12))
    outputs = list(engine.run())
    chunks = [output for output in outputs if output.request_id == "a"]
    assert [len(chunk.frames) for chunk in chunks] == per_chunk
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(per_chunk)))
    assert [chunk.is_last for chunk in chunks] == [False] * (len(per_chunk) - 1) + [True]
    a, longer = (latents_of_frames(video_of(outputs, id)) for id in ("a", "longer"))
    assert torch.allclose(a, longer[: len(a)], atol=1e-5)


def test_a_chunk_comes_out_in_the_step_that_cleans_it():
    engine = toy_engine(num_denoise_steps=3)
    engine.submit(VideoRequest("a", "1", 6))
    per_step = [engine.step() for _ in range(7)]
    assert [len(outputs) for outputs in per_step] == [0, 0, 1, 0, 0, 0, 1]
    levels = [level for forward in engine.model.forwards for _, _, level in forward]
    assert levels == [*engine.model.noise_levels(3), *engine.model.noise_levels(3)[:-1]]
    assert_all_pages_free(engine)


def test_run_yields_a_chunk_before_the_next_is_begun():
    engine = toy_engine()
    engine.submit(VideoRequest("a", "1", 9))
    first = next(engine.run())
    assert isinstance(first, ChunkOutput) and first.chunk_index == 0
    assert len(engine.model.forwards) == 2
    assert engine.has_work


@pytest.mark.parametrize(("num_chunks", "num_stored"), [(1, 0), (2, 1), (3, 2)])
def test_the_last_chunk_is_not_committed(num_chunks, num_stored):
    """Nobody would read it: neither a pass nor a page is spent."""
    engine = toy_engine()
    engine.submit(VideoRequest("a", "1", num_chunks * FRAMES_PER_CHUNK))
    list(engine.run())
    levels = [level for forward in engine.model.forwards for _, _, level in forward]
    assert levels.count(0.0) == num_stored and levels[-1] != 0.0
    assert engine.cache.pool.peak_used_pages == num_stored * 2 * NUM_LAYERS * KV_HEADS * 3


def test_denoise_steps_and_commit_passes_share_a_forward():
    engine = toy_engine(policy="round_robin", max_batch_tokens=1000)
    engine.submit(VideoRequest("a", "1", 6))
    engine.step()
    engine.submit(VideoRequest("b", "2", 6))
    list(engine.run())
    shared = [{prompt: level for prompt, _, level in forward} for forward in engine.model.forwards]
    assert shared[:4] == [{"1": 1.0}, {"1": 0.5, "2": 1.0}, {"1": 0.0, "2": 0.5}, {"1": 1.0, "2": 0.0}]


def test_branches_of_a_video_run_in_one_forward_at_one_level():
    engine = toy_engine(ToyModel(("cond", "uncond")), max_batch_tokens=2 * CHUNK_TOKENS)
    engine.submit(VideoRequest("a", "1", 6))
    engine.submit(VideoRequest("b", "2", 6))
    list(engine.run())
    for forward in engine.model.forwards:
        (prompt, _, level), *_ = forward
        assert forward == [(prompt, "cond", level), (prompt, "uncond", level)]
    assert_all_pages_free(engine)


def test_round_robin_advances_all_videos_alike_and_fcfs_ends_the_first():
    for policy, ids in (("round_robin", "abc" * 3), ("fcfs", "aaabbbccc")):
        engine = toy_engine(policy=policy, max_batch_tokens=CHUNK_TOKENS)
        for seed, id in enumerate("abc"):
            engine.submit(VideoRequest(id, "1", 9, seed))
        assert "".join(output.request_id for output in engine.run()) == ids


def test_the_last_chunk_tells_the_bytes_of_the_stored_window():
    engine = toy_engine(codecs="int2", window=(1, 2))
    engine.submit(VideoRequest("a", "1", 5 * FRAMES_PER_CHUNK))
    engine.submit(VideoRequest("single chunk", "1", FRAMES_PER_CHUNK))
    outputs = list(engine.run())
    tables, num_chunks = NUM_LAYERS * KV_HEADS, 3
    stored, bf16 = tables * (2 * 36 * HEAD_DIM + 4), tables * CHUNK_TOKENS * HEAD_DIM * 2 * 2
    by_chunk = [(output.stored_bytes, output.bf16_bytes) for output in outputs if output.request_id == "a"]
    assert by_chunk == [(min(chunk, num_chunks) * stored, min(chunk, num_chunks) * bf16) for chunk in range(5)]
    (single,) = (output for output in outputs if output.request_id == "single chunk")
    assert (single.stored_bytes, single.bf16_bytes) == (0, 0)


def test_stats_count_what_happened():
    engine = toy_engine(max_concurrent=2)
    for id, prompt in (("a", "1"), ("b", "2 raises@0.0"), ("c", "3")):
        engine.submit(VideoRequest(id, prompt, 6))
    engine.step()
    stats = engine.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_finished, stats.num_failed) == (1, 2, 0, 0)
    assert (stats.num_chunks_done, stats.num_steps) == (0, 1)
    list(engine.run())
    stats = engine.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_finished, stats.num_failed) == (0, 0, 2, 1)
    assert stats.num_chunks_done == 2 + 1 + 2
    assert 0 < stats.forward_seconds < stats.step_seconds


def test_a_step_without_work_does_nothing():
    engine = toy_engine()
    assert engine.step() == [] and list(engine.run()) == []
    assert engine.model.forwards == []


def test_a_window_longer_than_the_model_was_trained_on_is_refused():
    with pytest.raises(ConfigError, match=r"sink_chunks 2 \+ recent_chunks 2 .* exceed the 4 chunks that toy"):
        toy_engine(window=(2, 2))
    toy_engine(ToyModel(positions="absolute"), window=(2, 2))


def test_the_cache_can_be_used_directly_after_the_engine():
    """The engine runs in inference mode; what it leaves in the cache must not."""
    engine = toy_engine(codecs="int2")
    engine.submit(VideoRequest("a", "1", 9))
    list(engine.run())
    stream, rope = engine.cache.open(engine.window, CHUNK_TOKENS), ToyRope()
    q = torch.ones(CHUNK_TOKENS, QUERY_HEADS, HEAD_DIM)
    kv = q[:, :KV_HEADS]
    for commit in (True, False):
        with engine.cache.step([QueryRange(stream, commit=commit)]) as step:
            for layer in range(NUM_LAYERS):
                assert step.attend(layer, q, kv, kv, rope).shape == q.shape
    engine.cache.release(stream)
    assert_all_pages_free(engine)
