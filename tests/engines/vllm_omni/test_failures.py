"""A forward that fails leaves nothing behind: the session is closed, as in vLLM-Omni, and all its pages are free."""

from __future__ import annotations

import pytest
import torch

from tests.engines.vllm_omni.rollouts import PAGED, cycle, new_runner, rollout, scheduled
from tests.engines.vllm_omni.tiny_lingbot import TinyPagedLingBot, request


class Boom(RuntimeError):
    pass


def fail_in_forward(runner, number: int) -> None:
    """Makes the last block of the transformer fail in the forward of this number, counted from 0."""
    calls = iter(range(1_000_000))

    def hook(*_):
        if next(calls) == number:
            raise Boom

    runner.pipeline.transformer.blocks[-1].cross_attn.register_forward_pre_hook(hook)


def assert_nothing_is_left(runner) -> None:
    cache = runner.kv_cache.cache
    cache.check()
    stats = cache.stats()
    assert (stats.pages_used, stats.pages_reserved, stats.num_streams) == (0, 0, 0)
    assert not runner._sessions and not runner.state_cache and not runner.pipeline._ar_sessions


@pytest.mark.parametrize("forward", [2, 12])  # denoise steps; every fifth forward is a commit pass
def test_in_a_denoise_step(config, forward):
    runner = new_runner(PAGED, config, codecs="fp32")
    fail_in_forward(runner, forward)
    with pytest.raises(Boom), scheduled(runner, [request("a", 4)]) as scheduler:
        while scheduler.has_requests():
            cycle(runner, scheduler)
    assert_nothing_is_left(runner)
    assert torch.equal(
        rollout(runner, request("a", 3))["a"], rollout(new_runner(PAGED, config, codecs="fp32"), request("a", 3))["a"]
    )


def test_in_a_commit_pass(config):
    """vLLM-Omni reports it as the result of the request."""
    runner = new_runner(PAGED, config, codecs="int2")
    fail_in_forward(runner, 14)
    with scheduled(runner, [request("a", 4)]) as scheduler:
        made = [cycle(runner, scheduler).runner_outputs[0] for _ in range(3)]
    assert [each.result.error is None for each in made] == [True, True, False]
    assert_nothing_is_left(runner)


def test_of_two_sessions_in_one_forward(config):
    runner = new_runner(PAGED, config, pipeline=TinyPagedLingBot, max_num_seqs=2, codecs="int2")
    fail_in_forward(runner, 9)
    with pytest.raises(Boom), scheduled(runner, [request("a", 4), request("b", 4, "snow")]) as scheduler:
        while scheduler.has_requests():
            cycle(runner, scheduler)
    assert_nothing_is_left(runner)


def test_one_of_two_sessions_fails_in_its_commit_pass(config):
    """The other one goes on to the same video."""
    runner = new_runner(PAGED, config, pipeline=TinyPagedLingBot, max_num_seqs=2, codecs="fp32")
    fail_in_forward(runner, 4)  # after 4 joint denoise steps: the commit pass of the first block of a
    with scheduled(runner, [request("a", 3), request("b", 3, "snow")]) as scheduler:
        blocks = []
        while scheduler.has_requests():
            for made in cycle(runner, scheduler).runner_outputs:
                if made.result is not None and made.request_id == "b":
                    blocks.append(made.result.output["payload"]["latents"])
    expected = rollout(new_runner(PAGED, config, codecs="fp32"), request("b", 3, "snow"))["b"]
    torch.testing.assert_close(torch.cat(blocks, dim=2), expected, rtol=0, atol=1e-5)
    assert_nothing_is_left(runner)


def test_values_that_no_page_can_store(config):
    runner = new_runner(PAGED, config, codecs="int2")
    runner.pipeline.transformer.blocks[1].self_attn.norm_k.weight.data[0] = float("nan")
    with scheduled(runner, [request("a", 2)]) as scheduler:
        result = cycle(runner, scheduler).runner_outputs[0].result
    assert "nan" in result.error.lower() or "finite" in result.error.lower()
    assert_nothing_is_left(runner)
