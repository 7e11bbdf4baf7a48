"""CUDA graphs give what the plain network gives. Skipped without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.config.sections import CacheConfig, Config, ModelConfig
from pagedvid.engine.requests import VideoRequest
from pagedvid.models.build import build_engine, resolve
from pagedvid.networks.captured import capture
from tests.networks.one_network import TOKENS, Attention, Network, arguments

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PROMPT = "a large red circle moving left on a black background"


@torch.no_grad()
def test_on_a_gpu_every_forward_has_arguments_and_attention_of_its_own() -> None:
    torch.manual_seed(0)
    made = Network().cuda()
    capture(made, torch.device("cuda"))
    outs = []
    for seed in range(6):
        x, more = arguments(seed, TOKENS + seed % 2)
        given = x.cuda(), [each.cuda() for each in more]
        outs.append((made(*given, Attention(seed)), Network.forward(made, *given, Attention(seed))))
    assert made.num_calls == 4 + 6, "two layouts: one plain and one recorded forward of each, and six to compare with"
    for out, expected in outs:
        torch.testing.assert_close(out, expected)


def frames(**settings: bool) -> Tensor:
    """All frames of two videos, the longer one alone at its end, in 0..255."""
    config = Config(ModelConfig(device="cuda", **settings), CacheConfig(memory="4MiB", codec="bf16"))
    engine = build_engine(resolve(config), [PROMPT])
    for number in range(2):
        engine.submit(VideoRequest(f"video-{number}", PROMPT, 24 + 24 * number, seed=number))
    return torch.stack([torch.from_numpy(output.frames).float() for output in engine.run()])


def assert_same_to_the_eye(one: Tensor, other: Tensor) -> None:
    """Sums may be rounded differently, and a code beside an edge may get another level."""
    assert float((one - other).square().mean()) < 1.0


def test_videos_are_those_of_the_plain_network() -> None:
    assert_same_to_the_eye(frames(cuda_graphs=True), frames())


def test_videos_of_compiled_and_recorded_blocks_are_those_of_the_plain_network() -> None:
    assert_same_to_the_eye(frames(cuda_graphs=True, compile=True), frames())
