"""MAGI-1's and HY-WorldPlay's networks in eight bits and in host memory. Those of diffusers are tested in
tests/models/wan/base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import VideoModel
from pagedvid.models.common.fp8_linear import Fp8Linear
from pagedvid.models.magi1.spec import MagiConfig
from pagedvid.models.magi1.weights import load_magi
from tests.models.magi1 import recordings as magi
from tests.models.worldplay import rollout as worldplay
from tests.models.worldplay.test_weights import LOADERS, checkpoint

CAPTIONS = magi.ROLLOUTS["w4"]
MAGI = {
    "magi1": (magi.NETWORK_A, magi.FRAMES_A, "weights_a.safetensors"),
    "magi1 gated": (magi.NETWORK_B, magi.FRAMES_B, "weights_b.safetensors"),
}
FAMILIES = (*MAGI, *LOADERS)


def load(family: str, folder: Path, **settings) -> VideoModel:
    """With settings of `ModelConfig`."""
    config = ModelConfig(**settings)
    if family in LOADERS:
        return LOADERS[family](checkpoint(folder, family), config)
    network, frames, weights = MAGI[family]
    return load_magi(MagiConfig(family, network, frames, CAPTIONS.sampling), magi.DATA / weights, config)


def video(family: str, model: VideoModel) -> Tensor:
    """Latents of several chunks, each of which reads those before it."""
    if family in LOADERS:
        request = worldplay.request(family, "a", seed=1, num_frames=12)
        return worldplay.run(worldplay.make_engine(model), [request])["a"]
    engine = magi.engine_of(model, CAPTIONS.num_steps)
    engine.submit(CAPTIONS.request())
    return magi.play(engine).final["a"]


def linears(model: VideoModel, kind: type) -> dict[str, nn.Module]:
    """Layers of exactly this kind, by name."""
    return {name: module for name, module in model.network.named_modules() if type(module) is kind}


def num_bytes(model: VideoModel) -> int:
    buffers = (buffer for block in model.blocks for buffer in block.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.network.parameters(), *buffers))


@pytest.mark.parametrize("weights_dtype", [None, "fp8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_in_host_memory_make_the_same_video_to_the_last_bit(family, weights_dtype, tmp_path, monkeypatch):
    expected = video(family, load(family, tmp_path, weights_dtype=weights_dtype))
    model = load(family, tmp_path, weights_dtype=weights_dtype, offload=True)
    at_rest = {tensor.data_ptr() for block in model.blocks for tensor in block.parameters()}
    used: set[int] = set()
    multiply = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional,
        "linear",
        lambda x, weight, bias=None: (used.add(weight.data_ptr()), multiply(x, weight, bias))[1],
    )
    assert torch.equal(video(family, model), expected)
    assert used and not used & at_rest, "a block ran where it rests"
    assert {tensor.data_ptr() for block in model.blocks for tensor in block.parameters()} == at_rest


@pytest.mark.parametrize("family", FAMILIES)
def test_in_eight_bits_the_video_is_that_of_the_decoded_weights(family, tmp_path):
    plain, eight = load(family, tmp_path), load(family, tmp_path, weights_dtype="fp8")
    in_blocks = {id(module) for block in plain.blocks for module in block.modules()}
    changed, before = linears(eight, Fp8Linear), linears(plain, nn.Linear)
    assert set(changed) == {name for name, module in before.items() if id(module) in in_blocks}
    num_weights = sum(layer.weight.numel() for layer in changed.values())
    num_rows = sum(len(layer.weight) for layer in changed.values())
    assert num_bytes(plain) - num_bytes(eight) == 3 * num_weights - 4 * num_rows
    assert float((video(family, eight) - video(family, plain)).abs().max()) > 0.001
    for name, layer in changed.items():
        before[name].weight.data = layer.weight.float() * layer.row_scales
    torch.testing.assert_close(video(family, eight), video(family, plain), rtol=0, atol=1e-4)
