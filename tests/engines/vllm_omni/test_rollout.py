"""Rollouts of 9 blocks over pages against rollouts over vLLM-Omni's own pool: one sink block, a window of three."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from pagedvid import CapacityError, ConfigError
from pagedvid.cache.window import Window
from pagedvid.integrations.vllm_omni.geometry import SessionGeometry
from tests.docs.pages import DOCS
from tests.engines.vllm_omni.rollouts import ITS_OWN, PAGED, new_runner, rollout
from tests.engines.vllm_omni.tiny_lingbot import (
    BLOCK_TOKENS,
    FRAMES,
    HEAD_DIM,
    HEADS,
    LAYERS,
    TinyPagedLingBot,
    request,
)

PAGE = (DOCS / "engines.md").read_text(encoding="utf-8")
BLOCKS = 9
BF16_BLOCK_BYTES = 2 * 2 * LAYERS * HEADS * BLOCK_TOKENS * HEAD_DIM


@pytest.fixture(scope="module")
def its_own(config):
    """The video of vLLM-Omni's runner and pool, in float32."""
    return rollout(new_runner(ITS_OWN, config), request("a", BLOCKS))["a"]


def paged(config, **settings) -> Tensor:
    return rollout(new_runner(PAGED, config, **settings), request("a", BLOCKS))["a"]


def errors(found: Tensor, expected: Tensor) -> Tensor:
    """Relative error of every block."""
    blocks = [each.unflatten(2, (-1, FRAMES)).transpose(0, 2).flatten(1) for each in (found - expected, expected)]
    return blocks[0].norm(dim=1) / blocks[1].norm(dim=1)


def test_fp32_pages_give_the_video_of_its_own_pool(config, its_own):
    assert errors(paged(config, codecs="fp32"), its_own).max() < 1e-6


def test_a_window_of_one_block_more_would_be_noticed(config, its_own, monkeypatch):
    longer = property(lambda geometry: Window(geometry.sink_blocks, geometry.window_blocks))
    monkeypatch.setattr(SessionGeometry, "window", longer)
    found = errors(paged(config, codecs="fp32"), its_own)
    assert found[:4].max() < 1e-6  # until then all blocks are seen either way
    assert found[4:].min() > 1e-3


@pytest.mark.parametrize(("sink_size", "frames"), [(0, 6), (3, 6), (6, 15)])
def test_other_windows_are_its_own_too(config, sink_size, frames):
    """Without sinks; with sinks and no block between them and the current one; with two sink blocks."""
    tiny = {"sink_size": sink_size, "sliding_window_num_frames": frames}
    expected = rollout(new_runner(ITS_OWN, config, tiny=tiny), request("a", 8))["a"]
    found = rollout(new_runner(PAGED, config, tiny=tiny, codecs="fp32"), request("a", 8))["a"]
    assert errors(found, expected).max() < 1e-6


def test_the_last_denoise_step_may_store(config):
    """vLLM-Omni's experimental mode, without a commit pass of its own."""
    expected = rollout(new_runner(ITS_OWN, config, reuse=True), request("a", BLOCKS))["a"]
    found = rollout(new_runner(PAGED, config, reuse=True, codecs="fp32"), request("a", BLOCKS))["a"]
    assert errors(found, expected).max() < 1e-6
    with pytest.raises(ConfigError, match="without lingbot_reuse_last_step_kv"):
        new_runner(PAGED, config, reuse=True, pipeline=TinyPagedLingBot, max_num_seqs=2)


def test_bf16_pages_give_its_video_within_bf16_rounding(config, its_own):
    """Two videos in bfloat16 are nearer to each other than vLLM-Omni's is to its own one in float32."""
    expected = rollout(new_runner(ITS_OWN, config, dtype=torch.bfloat16), request("a", BLOCKS))["a"]
    found = paged(config, dtype=torch.bfloat16, codecs="bf16")
    rounding = errors(expected, its_own)
    assert (errors(found, expected) < rounding).all()
    assert errors(paged(config, codecs="bf16"), its_own).max() < 1e-4


def test_int2_needs_a_seventh_of_the_bytes_and_the_correction_lowers_the_error(config, its_own):
    runner = new_runner(PAGED, config, codecs="int2")
    corrected = errors(rollout(runner, request("a", BLOCKS))["a"], its_own)[1:].mean()
    plain = errors(paged(config, codecs="int2", correction="off"), its_own)[1:].mean()
    stats = runner.kv_cache.cache.stats()
    pages_bytes = stats.pages_peak * stats.page_bytes
    saved = 4 * BF16_BLOCK_BYTES / pages_bytes  # a sink, two recent blocks, and the one that is stored
    assert saved >= 7
    assert corrected < plain
    row = r"\| int2 \| ([\d.]+) times fewer bytes; .* latents ([\d.e-]+), without the correction ([\d.e-]+)"
    said = re.search(row, PAGE)
    assert said is not None
    assert [float(each) for each in said.groups()] == pytest.approx([saved, float(corrected), float(plain)], rel=0.03)


def test_as_many_sessions_as_fit_exactly(config):
    session = new_runner(PAGED, config, sessions=1).kv_cache
    text_bytes = 2 * 512 * LAYERS * HEADS * HEAD_DIM * 4
    owned = new_runner(PAGED, config).pipeline.ar_diffusion_kv_cache_spec().model_owned_state_bytes_per_session
    one = session.cache.stats().num_pages * session.cache.stats().page_bytes + text_bytes + owned
    assert new_runner(PAGED, config, memory=3 * one, sessions=5).kv_cache.capacity == 3
    assert new_runner(PAGED, config, memory=3 * one - 1, sessions=5).kv_cache.capacity == 2
    with pytest.raises(CapacityError, match="a session needs"):
        new_runner(PAGED, config, memory=one - 1)


def test_the_least_recently_used_session_makes_room(config, its_own):
    """vLLM-Omni's policy; every page of the session that goes is free for the next one."""
    runner = new_runner(PAGED, config, codecs="fp32", sessions=1)
    runner._get_or_create_session("old")
    assert errors(rollout(runner, request("a", BLOCKS))["a"], its_own).max() < 1e-6
    assert not runner._sessions and runner.kv_cache.cache.stats().pages_used == 0


def test_what_cannot_run_over_pages_is_refused(config):
    with pytest.raises(ConfigError, match="a multiple of the 3 frames"):
        new_runner(PAGED, config, tiny={"sink_size": 2})
    with pytest.raises(ConfigError, match="enforce_eager"):
        new_runner(PAGED, config, eager=False)
    with pytest.raises(ConfigError, match="PagedLingBotPipeline"):
        new_runner(PAGED, config, max_num_seqs=2)
    with pytest.raises(CapacityError, match="max_num_seqs is 3, but 2 sessions"):
        new_runner(PAGED, config, pipeline=TinyPagedLingBot, max_num_seqs=3)
