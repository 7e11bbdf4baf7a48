"""SGLang's own LingBot-World on pages gives what it gives on SGLang's own cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pagedvid import StreamCodecs
from pagedvid.errors import ConfigError, NonFiniteError, ShapeError, StateError
from pagedvid.integrations.sglang import install
from tests.docs.pages import DOCS
from tests.engines.sglang import on_cpu
from tests.engines.sglang.tiny_lingbot import CHUNK_TOKENS, HEAD_DIM, HEADS, LAYERS, new_model, new_stage, roll_out

NUM_CHUNKS = 9


@contextmanager
def hooks(codecs: str = "int2", correction: str | None = None) -> Iterator[None]:
    """SGLang with the hooks applied by SGLang; its functions as they were afterwards."""
    registry = on_cpu.module("platforms.plugins").HookRegistry
    model = on_cpu.module("models.dits.lingbot_world")
    functions = (
        (on_cpu.lingbot_stages().LingBotWorldCausalDMDDenoisingStage, "_allocate_causal_kv_cache"),
        (model.CausalLingBotWorldTransformer3DModel, "forward"),
        (model.LingBotWorldCausalSelfAttention, "forward"),
    )
    try:
        with pytest.MonkeyPatch.context() as patched:
            for owner, name in functions:
                patched.setattr(owner, name, vars(owner)[name])
            install(StreamCodecs(codecs), correction=correction)
            registry.apply_hooks()
            assert len(registry._patched) == len(functions)
            yield
    finally:
        registry.reset()


def dense(dtype: torch.dtype = torch.float32, num_chunks: int = NUM_CHUNKS, **settings: Any) -> Tensor:
    return rolled_out(new_stage(new_model(dtype), **settings), num_chunks)


def paged(codecs: str, dtype: torch.dtype = torch.float32, correction: str | None = None, **settings: Any) -> Tensor:
    with hooks(codecs, correction):
        return rolled_out(new_stage(new_model(dtype), **settings), NUM_CHUNKS)


def rolled_out(stage: Any, num_chunks: int, num_videos: int = 1) -> Tensor:
    allocate(stage, num_videos)
    return roll_out(stage, num_chunks, num_videos=num_videos)


def allocate(stage: Any, num_videos: int = 1) -> None:
    """Both caches, by SGLang's stage."""
    dtype = next(stage.transformer.parameters()).dtype
    stage._initialize_causal_caches(batch_size=num_videos, max_text_len=5, dtype=dtype, device=torch.device("cpu"))


def error(out: Tensor, exact: Tensor) -> float:
    """Of the chunks that see a history, relative to the exact result."""
    return float((out.float() - exact.float())[1:].norm() / exact.float()[1:].norm())


@pytest.mark.parametrize(
    "settings",
    [{}, {"sink_size": 0, "sliding_window_num_frames": 8}, {"sink_size": 4}, {"sliding_window_num_frames": 18}],
    ids=["window and sink", "window", "two sinks", "whole video"],
)
def test_float_pages_give_what_its_own_cache_gives(settings):
    torch.testing.assert_close(paged("fp32", **settings), dense(**settings), rtol=1e-4, atol=1e-4)


def test_the_window_matters_to_these_outputs():
    """So that the comparison above can fail: one chunk more or less shows."""
    exact = dense()
    for other in ({"sliding_window_num_frames": 12}, {"sliding_window_num_frames": 8}, {"sink_size": 0}):
        assert error(dense(**other), exact) > 0.02


def test_bf16_pages_are_as_near_to_float_as_its_own_bf16_cache():
    exact = dense()
    out = paged("bf16", torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert error(out, exact) < 1.1 * error(dense(torch.bfloat16), exact) < 0.05


def test_int2_pages_take_a_seventh_and_the_correction_lowers_the_error():
    exact = dense()
    errors = {correction: error(paged("int2", correction=correction), exact) for correction in ("off", "measured")}
    assert errors["measured"] < 0.97 * errors["off"] < 0.2
    section = (DOCS / "engines.md").read_text(encoding="utf-8").partition("\n## SGLang\n")[2].partition("\n## ")[0]
    said = re.search(r"of the outputs of ([\d.]+), without the correction ([\d.]+)", " ".join(section.split()))
    assert said is not None
    assert [float(each) for each in said.groups()] == pytest.approx([errors["measured"], errors["off"]], rel=0.03)
    own = new_stage(new_model(torch.bfloat16))
    allocate(own)
    dense_bytes = sum(layer.k.nbytes + layer.v.nbytes for layer in own.causal_kv_cache)
    assert dense_bytes == LAYERS * 2 * 10 * 64 * HEADS * HEAD_DIM * 2
    with hooks():
        allocate(own)
    stats = own.causal_kv_cache[0].videos.cache.stats()
    assert 7 * stats.num_pages * stats.page_bytes < dense_bytes


def test_videos_of_a_batch_keep_to_themselves():
    with hooks("fp32"):
        stage = new_stage(new_model())
        together = rolled_out(stage, 6, num_videos=2)
    exact = rolled_out(new_stage(new_model()), 6, num_videos=2)
    torch.testing.assert_close(together, exact, rtol=1e-4, atol=1e-4)
    assert error(together[:, :, 0], together[:, :, 1]) > 0.1


def test_a_second_video_begins_anew():
    with hooks():
        stage = new_stage(new_model())
        first = rolled_out(stage, 4)
        stage._reset_causal_caches(kv_cache=stage.causal_kv_cache, crossattn_cache=stage.crossattn_cache)
        assert torch.equal(roll_out(stage, 4), first)
        stage.causal_kv_cache[0].videos.cache.check()


def test_its_own_cache_passes_through_the_hooks():
    exact = dense(num_chunks=3)
    with hooks():
        stage = new_stage(new_model())
        allocate(stage)
        stage.causal_kv_cache = own_cache(stage)
        assert torch.equal(roll_out(stage, 3), exact)


def own_cache(stage: Any) -> Any:
    """SGLang's, by the method that the hooks leave alone."""
    sizes = {"kv_cache_size": stage._get_causal_kv_cache_size(), "sink_tokens": stage._get_causal_sink_tokens()}
    heads = {"num_attention_heads": HEADS, "attention_head_dim": HEAD_DIM}
    allocation = on_cpu.module("pipelines_core.stages.causal_denoising").CausalDMDDenoisingStage
    return allocation._allocate_causal_kv_cache(
        stage, batch_size=1, dtype=torch.float32, device=torch.device("cpu"), use_int_indices=True, **sizes, **heads
    )


def test_a_forward_that_fails_leaves_nothing_behind(monkeypatch):
    with hooks():
        stage = new_stage(new_model())
        allocate(stage)
        roll_out(stage, 2)
        videos = stage.causal_kv_cache[0].videos
        last = stage.transformer.blocks[-1]
        with monkeypatch.context() as broken:
            broken.setattr(type(last), "_project_qkv", lambda block, x: (x, x, torch.nan * x if block is last else x))
            with pytest.raises(NonFiniteError):
                roll_out(stage, 1, first_chunk=2)
        videos.cache.check()
        assert videos.num_committed == 2
        after = roll_out(stage, 1, first_chunk=2)
        other = new_stage(new_model())
        assert torch.equal(after[0], rolled_out(other, 3)[2])


def test_no_chunk_is_lost_or_stored_twice():
    with hooks():
        stage = new_stage(new_model())
        allocate(stage)
        roll_out(stage, 2)
        with pytest.raises(StateError, match="begins at token 128 was given, but 2 chunks of 128 are stored"):
            roll_out(stage, 1, first_chunk=1)
        with pytest.raises(StateError, match="begins at token 384 was given, but 2 chunks"):
            roll_out(stage, 1, first_chunk=3)
        with pytest.raises(ShapeError, match=r"2 videos of 128 tokens; the cache is for 1"):
            roll_out(stage, 1, first_chunk=2, num_videos=2)
        layer = stage.causal_kv_cache[0]
        q = torch.zeros(1, CHUNK_TOKENS, HEADS, HEAD_DIM)
        with pytest.raises(StateError, match="only inside a forward of its transformer"):
            layer.attend(q, q, q, (q, q))
        with pytest.raises(ConfigError, match="asks for dense keys"):
            layer.update_and_get_attention_kv(key=q, value=q, current_chunk_start=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sink_size": 3}, "must be whole chunks"),
        ({"sliding_window_num_frames": 9}, "must be whole chunks"),
        ({"sliding_window_num_frames": 4}, "at least one between the sinks and the current one"),
        ({"_kv_quant_args": SimpleNamespace(enabled=True)}, "own KV cache quantization is on"),
        ({"_get_causal_attention_window_size": lambda size: size - 64}, "attention_window_size 576 were asked for"),
    ],
)
def test_caches_that_pages_cannot_be(settings, message):
    with hooks(), pytest.raises(ConfigError, match=message):
        allocate(new_stage(new_model(), **settings))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enable_sequence_shard": True}, "sequence sharding is on"),
        ({"realtime_causal_kv_sample_tokens": 64}, "the interactive KV window is on"),
    ],
)
def test_requests_that_pages_cannot_serve(given, message, monkeypatch):
    from tests.engines.sglang import tiny_lingbot

    request = tiny_lingbot.request()
    vars(request).update(given)
    monkeypatch.setattr(tiny_lingbot, "request", lambda: request)
    with hooks(), pytest.raises(ConfigError, match=message):
        rolled_out(new_stage(new_model()), 1)


def test_a_model_that_rotates_otherwise_is_refused(monkeypatch):
    model = new_model()
    prepare = model._prepare_cached_rope
    monkeypatch.setattr(model, "_prepare_cached_rope", lambda **given: tuple(2 * x for x in prepare(**given)))
    with hooks(), pytest.raises(ConfigError, match="rotates the chunk at token 0 by other angles"):
        rolled_out(new_stage(model), 1)


def test_the_stage_keeps_the_cache_of_a_session_as_long_as_its_sizes_are_wanted():
    with hooks():
        stage = new_stage(new_model())
        allocate(stage)
    wanted = {"expected_cache_tokens": 640, "num_attention_heads": HEADS, "expected_sink_tokens": CHUNK_TOKENS}
    kept = SimpleNamespace(kv_cache=stage.causal_kv_cache, crossattn_cache=stage.crossattn_cache)
    for change, resets in ({}, False), ({"expected_cache_tokens": 512}, True), ({"expected_sink_tokens": 0}, True):
        policy = SimpleNamespace(**{**wanted, **change})
        request = SimpleNamespace(block_idx=1)
        assert stage._should_reset_realtime_causal_caches(request, cache_state=kept, policy=policy) == resets
