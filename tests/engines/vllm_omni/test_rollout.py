"""Rollouts over pages against rollouts over vLLM-Omni's own pool."""

from __future__ import annotations

import pytest
import torch
from tests.engines.vllm_omni.rollouts import ITS_OWN, PAGED, new_runner, rollout
from tests.engines.vllm_omni.tiny_lingbot import request

BLOCKS = 9


def test_fp32_pages_give_the_videos_of_its_own_pool(config):
    expected = rollout(new_runner(ITS_OWN, config), request("a", BLOCKS))["a"]
    found = rollout(new_runner(PAGED, config, codecs="fp32"), request("a", BLOCKS))["a"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
