"""Several sessions in one forward, which vLLM-Omni's own runner refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engines.vllm_omni.rollouts import ITS_OWN, PAGED, new_runner, rollout
from tests.engines.vllm_omni.tiny_lingbot import TinyPagedLingBot, request

PROMPTS = {"a": "a walk along the sea", "b": "a train in the snow", "c": "rain on a roof"}


BLOCKS = 8
"""vLLM-Omni's scheduler runs requests together whose sizes and lengths are equal."""


def requests(names: str) -> list[Any]:
    """New ones: a scheduler writes into them."""
    return [request(name, BLOCKS, PROMPTS[name]) for name in names]


def batch_sizes(runner) -> list[int]:
    """Filled with the number of rows of every forward from now on."""
    sizes: list[int] = []
    runner.pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    return sizes


def test_vllm_omni_refuses_it(config):
    with pytest.raises(ValueError, match="max_num_seqs=1"):
        new_runner(ITS_OWN, config, pipeline=TinyPagedLingBot, max_num_seqs=2)


@pytest.mark.parametrize("codecs", ["fp32", "int2"])
def test_two_sessions_in_one_forward_give_the_videos_of_each_alone(config, codecs):
    alone = {}
    for each in requests("ab"):
        alone |= rollout(new_runner(PAGED, config, codecs=codecs), each)
    runner = new_runner(PAGED, config, pipeline=TinyPagedLingBot, max_num_seqs=2, codecs=codecs)
    sizes = batch_sizes(runner)
    together = rollout(runner, *requests("ab"))
    assert sizes.count(2) == 4 * BLOCKS  # all denoise steps; commit passes are the sessions' own
    assert sizes.count(1) == 2 * BLOCKS
    for name, expected in alone.items():
        torch.testing.assert_close(together[name], expected, rtol=0, atol=1e-5 if codecs == "fp32" else 1e-2)


def test_sessions_at_different_blocks_and_denoise_steps_share_forwards(config):
    """The second one arrives when the first has made 3 blocks, the third in the midst of their blocks."""
    alone = {}
    for each in requests("abc"):
        alone |= rollout(new_runner(PAGED, config, codecs="fp32"), each)
    runner = new_runner(PAGED, config, pipeline=TinyPagedLingBot, max_num_seqs=3, sessions=3, codecs="fp32")
    sizes = batch_sizes(runner)
    together = rollout(runner, *requests("abc"), arrivals=[0, 3, 5])
    assert sizes.count(2) >= 2 and sizes.count(3) == 4 * (BLOCKS - 3) - 2
    for name, expected in alone.items():
        torch.testing.assert_close(together[name], expected, rtol=0, atol=1e-5)
