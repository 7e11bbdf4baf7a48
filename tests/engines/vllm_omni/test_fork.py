"""Forks of sessions whose blocks are asked for one by one (ticks)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vllm_omni.experimental.ar_diffusion.tick_protocol import ARDiffusionTickRequest

from pagedvid import CapacityError, ConfigError, StateError
from pagedvid.integrations.vllm_omni.runner import FORK_OF
from tests.engines.vllm_omni.rollouts import PAGED, new_runner
from tests.engines.vllm_omni.tiny_lingbot import TinyLingBot, TinyPagedLingBot, request


def tick(runner, session_id: str, block: int, prompt: str = "a walk along the sea", **extra: str) -> Tensor:
    """The latents of the next block of a session. `extra`: entries of the request's extra_args."""
    asked = request(f"{session_id}-{block}", 1, prompt)
    one = ARDiffusionTickRequest(
        session_id=session_id,
        request_id=asked.request_id,
        chunk_index=block,
        applied_event_ids=(),
        prompt=None,
        controls=(),
    )
    asked.sampling_params.extra_args |= {**one.to_extra_args(), **extra}
    return runner.execute_model(asked).output["payload"]["latents"]


def new(config, **settings):
    return new_runner(PAGED, config, pipeline=TinyPagedLingBot, step_execution=False, codecs="int2", **settings)


def test_a_fork_shares_pages_and_goes_its_own_way(config):
    runner = new(config, sessions=2)
    cache = runner.kv_cache.cache
    for block in range(4):
        tick(runner, "a", block)
    before = cache.stats()
    runner.fork_session("a", "b")
    stats = cache.stats()
    assert stats.pages_used == before.pages_used == stats.pages_shared > 0
    assert stats.num_shared_chunks == 3  # a sink and two recent blocks
    cache.check()

    same, twin = tick(runner, "a", 4), tick(runner, "b", 4)
    assert torch.equal(same, twin)
    others = [tick(runner, "a", 5), tick(runner, "b", 5, "a train in the snow")]
    assert not torch.equal(*others)
    pages_a, pages_b = (cache.own_and_shared_pages(runner._sessions[name].streams[0]) for name in "ab")
    assert pages_a == pages_b and pages_a[1] == before.pages_used // 3  # the sink is still shared
    runner.close_session("a")
    tick(runner, "b", 6, "a train in the snow")
    runner.close_session("b")
    assert cache.stats().pages_used == 0


def test_a_fork_gives_what_the_session_would_have_given(config):
    runner, other = new(config, sessions=2), new(config, sessions=2)
    for block in range(3):
        tick(runner, "a", block), tick(other, "a", block)
    assert torch.equal(tick(runner, "b", 3, **{FORK_OF: "a"}), tick(other, "a", 3))
    for block in (4, 5):
        tick(runner, "a", block - 1, "a train in the snow")
        assert torch.equal(tick(runner, "b", block), tick(other, "a", block))


def test_what_cannot_be_forked(config):
    runner = new(config, sessions=2)
    tick(runner, "a", 0)
    with pytest.raises(StateError, match="must be open"):
        runner.fork_session("nobody", "b")
    runner.fork_session("a", "b")
    with pytest.raises(StateError, match="fork to a new name"):
        tick(runner, "b", 1, **{FORK_OF: "a"})
    with pytest.raises(CapacityError, match="all 2 sessions"):
        runner.fork_session("a", "c")
    stock = new_runner(PAGED, config, pipeline=TinyLingBot, step_execution=False)
    tick(stock, "a", 0)
    with pytest.raises(ConfigError, match="fork_ar_diffusion_session"):
        stock.fork_session("a", "b")
