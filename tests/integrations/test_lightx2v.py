"""LightX2V's model on pages gives what it gives on its own dense pool, by its contract (lightx2v_contract.py)."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from pagedvid import StreamCodecs
from pagedvid.errors import ConfigError, NonFiniteError, StateError
from pagedvid.integrations.lightx2v import install
from tests.docs.pages import DOCS
from tests.integrations import lightx2v_contract as lightx2v

GRID = (2, 8, 8)
"""Frames, rows and columns of a chunk: 128 tokens."""
NUM_CHUNKS = 9
DENSE = {"self_attn_1_type": "dense", "causal_rope_type": "wan_causal_rope"}
PAGED = {"self_attn_1_type": "pagedvid", "causal_rope_type": "pagedvid"}


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.delitem(sys.modules, "pagedvid.integrations.lightx2v_classes", raising=False)
    lightx2v.as_library(monkeypatch)


def dense_model(dtype: torch.dtype = torch.float32, **ar_config: Any) -> lightx2v.Model:
    return model_of({**DENSE}, dtype, ar_config)


def paged_model(
    codecs: str, dtype: torch.dtype = torch.float32, correction: str | None = None, **ar_config: Any
) -> Any:
    install(StreamCodecs(codecs), correction=correction)
    return model_of({**PAGED}, dtype, {"kv_cache_scheme": "pagedvid", **ar_config})


def model_of(types: dict[str, Any], dtype: torch.dtype, ar_config: dict[str, Any]) -> lightx2v.Model:
    window = {"num_frame_per_chunk": GRID[0], "local_attn_size": 10, "sink_size": 2}
    config = {**types, "num_layers": 2, "num_heads": 2, "dim": 128, "ar_config": {**window, **ar_config}}
    return lightx2v.Model(config, dtype)


def error(out: Tensor, exact: Tensor) -> float:
    """Of the chunks that see quantized pages, relative to the exact result."""
    return float((out.float() - exact.float())[1:].norm() / exact.float()[1:].norm())


@pytest.mark.parametrize(
    "ar_config",
    [{}, {"local_attn_size": 8, "sink_size": 0}, {"local_attn_size": 12, "sink_size": 4}, {"local_attn_size": -1}],
    ids=["window and sink", "window", "two sinks", "whole video"],
)
def test_float_pages_give_what_the_dense_pool_gives(ar_config):
    exact = lightx2v.roll_out(dense_model(**ar_config), GRID, NUM_CHUNKS)
    out = lightx2v.roll_out(paged_model("fp32", **ar_config), GRID, NUM_CHUNKS)
    torch.testing.assert_close(out, exact, rtol=1e-4, atol=1e-4)


def test_the_window_matters_to_these_outputs():
    """So that the comparison above can fail: one chunk more or less shows."""
    exact = lightx2v.roll_out(dense_model(), GRID, NUM_CHUNKS)
    for other in ({"local_attn_size": 12}, {"local_attn_size": 8}, {"sink_size": 0}):
        assert error(lightx2v.roll_out(dense_model(**other), GRID, NUM_CHUNKS), exact) > 0.01


def test_bf16_pages_are_as_near_to_float_as_the_bf16_pool():
    exact = lightx2v.roll_out(dense_model(), GRID, NUM_CHUNKS)
    dense = lightx2v.roll_out(dense_model(torch.bfloat16), GRID, NUM_CHUNKS)
    paged = lightx2v.roll_out(paged_model("bf16", torch.bfloat16), GRID, NUM_CHUNKS)
    assert paged.dtype == torch.bfloat16
    assert error(paged, exact) < 1.1 * error(dense, exact) < 0.03


def test_int2_pages_take_a_seventh_and_the_correction_lowers_the_error():
    dense = dense_model(torch.bfloat16)
    lightx2v.roll_out(dense, GRID, 1)
    exact = lightx2v.roll_out(dense_model(), GRID, NUM_CHUNKS)
    errors = {}
    for correction in ("off", "formula", "measured"):
        model = paged_model("int2", correction=correction)
        errors[correction] = error(lightx2v.roll_out(model, GRID, NUM_CHUNKS), exact)
    cache = model.manager.self_attn_kv_cache.cache
    assert 7 * cache.stats().num_pages * cache.spec.shape.page_bytes < dense.manager.self_attn_kv_cache.nbytes
    assert max(errors["measured"], errors["formula"]) < 0.95 * errors["off"] < 0.3
    section = (DOCS / "engines.md").read_text(encoding="utf-8").partition("\n## LightX2V\n")[2].partition("\n## ")[0]
    said = re.search(r"of the outputs of ([\d.]+), without the correction ([\d.]+)", " ".join(section.split()))
    assert said is not None
    assert [float(each) for each in said.groups()] == pytest.approx([errors["measured"], errors["off"]], rel=0.03)
    cache.check()


def test_a_second_video_begins_anew():
    model = paged_model("fp32")
    first = lightx2v.roll_out(model, GRID, 4)
    pool = model.manager.self_attn_kv_cache
    assert torch.equal(lightx2v.roll_out(model, GRID, 4), first) and model.manager.self_attn_kv_cache is pool
    wide = lightx2v.roll_out(model, (2, 4, 16), 4)  # as many tokens, in the same pool
    exact = lightx2v.roll_out(dense_model(), (2, 4, 16), 4)
    torch.testing.assert_close(wide, exact, rtol=1e-4, atol=1e-4)
    pool.cache.check()


def test_a_forward_that_fails_leaves_nothing_behind():
    model, twin = paged_model("int2"), paged_model("int2")
    expected = lightx2v.roll_out(twin, GRID, 3)
    lightx2v.roll_out(model, GRID, 2)
    pool = model.manager.self_attn_kv_cache
    pages_used, x = pool.cache.stats().pages_used, torch.randn(128, 128)
    with pytest.raises(NonFiniteError):
        model.forward(torch.full_like(x, torch.nan), GRID, 2)  # the commit pass: no current_step was set
    pool.cache.check()
    assert pool.cache.streams[0].num_committed == 2 and pool.cache.stats().pages_used == pages_used
    model.attention(0, x, GRID, 2)  # the host fails between two layers
    model.manager.current_step = 0
    model.forward(x, GRID, 2)
    pool.cache.check()
    assert pool.cache.streams[0].num_committed == 2
    assert torch.equal(lightx2v.roll_out(model, GRID, 3), expected)


def test_no_chunk_is_lost_or_stored_twice():
    model = paged_model("int2")
    lightx2v.roll_out(model, GRID, 2)
    x = torch.randn(128, 128)
    with pytest.raises(StateError, match="begins at token 128 was given, but 2 chunks of 128 are stored"):
        model.forward(x, GRID, 1)
    model.manager.current_step = 0
    with pytest.raises(StateError, match="begins at token 384 was given, but 2 chunks"):
        model.forward(x, GRID, 3)
    with pytest.raises(StateError, match="layer 1 attends before it stored keys"):
        pool = model.manager.self_attn_kv_cache
        pool.attend(pool.k_cache(1, 0, 256), x.view(128, 2, 64))


@pytest.mark.parametrize(
    ("config", "ar_config", "message"),
    [
        ({"causal_rope_type": "wan_causal_rope"}, {}, "causal_rope_type is 'wan_causal_rope'; .* must be \"pagedvid\""),
        ({"self_attn_1_type": "dense"}, {}, "self_attn_1_type is 'dense'"),
        ({"enable_cfg": True}, {}, "both guidance branches write to one history"),
        ({"seq_parallel": True}, {}, "all heads of a video on one device"),
        ({}, {"kv_offload": True}, "ar_config.kv_offload is on"),
        ({}, {"sink_size": 3}, r"sink_size is 3 frames; it must be a multiple of num_frame_per_chunk \(2\)"),
        ({}, {"local_attn_size": 9}, "must be whole chunks"),
        ({}, {"local_attn_size": 4}, "at least one between the sinks and the current one"),
        ({}, {"max_attention_size": 256}, "leave max_attention_size out of ar_config"),
    ],
)
def test_configurations_that_pages_cannot_do(config, ar_config, message):
    install(StreamCodecs("int2"))
    model = model_of({**PAGED, **config}, torch.float32, {"kv_cache_scheme": "pagedvid", **ar_config})
    with pytest.raises(ConfigError, match=message):
        lightx2v.roll_out(model, GRID, NUM_CHUNKS)


def test_parts_that_are_not_for_each_other():
    with pytest.raises(ConfigError, match=r"was given keys in a Tensor.* set ar_config.kv_cache_scheme"):
        lightx2v.roll_out(paged_model("int2", kv_cache_scheme="fp"), GRID, 1)
    model = paged_model("int2")
    q = torch.zeros(1, 4, 2, 64)
    with pytest.raises(ConfigError, match="run without seq_parallel"):
        model.ropes[0].apply(q, q, model.freqs)
    with pytest.raises(ConfigError, match="layout is 'split_half'"):
        lightx2v.ROPES["pagedvid"](layout="split_half")
    with pytest.raises(ConfigError, match="codecs is 'int2'"):
        install("int2")


def test_reference_frames_are_refused():
    model = paged_model("int2")
    model.manager.create(8, *GRID[1:])
    apply = model.ropes[0].apply
    model.ropes[0].apply = lambda *args, start_frame, **more: apply(*args, start_frame=start_frame + 2, **more)
    with pytest.raises(ConfigError, match="rotated as frame 2 of 64 tokens; reference frames"):
        model.forward(torch.randn(128, 128), GRID, 0)


def test_another_library_or_none(monkeypatch):
    lightx2v.as_library(monkeypatch, version="0.2.0")
    with pytest.raises(ConfigError, match=r"version 0\.2\.0; this integration is written for 0\.1\.0.*f8aee98"):
        install()
    monkeypatch.delitem(sys.modules, "pagedvid.integrations.lightx2v_classes")
    monkeypatch.setitem(sys.modules, "lightx2v.common.kvcache.manager", None)
    with pytest.raises(ConfigError, match="or a part of it that is used here, cannot be imported"):
        install()
