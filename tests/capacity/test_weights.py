"""Bytes of weights by format: those of the cards are those of the transformers, tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pagedvid.capacity.card_files import all_cards, find_card
from pagedvid.capacity.sizing import Question
from pagedvid.capacity.weights import BLOCKS_ON_DEVICE, weight_formats
from pagedvid.integrations.diffusers_library import empty_transformer
from pagedvid.models.common import offload as offloading
from pagedvid.models.common.fp8_linear import use_fp8
from pagedvid.models.common.offload import offload
from pagedvid.models.magi1.network import MagiNetwork
from pagedvid.models.magi1.spec import PUBLISHED as MAGI
from pagedvid.models.worldplay.network_8b import Network8B
from pagedvid.models.worldplay.network_wan5b import NetworkWan5B
from pagedvid.models.worldplay.spec import Config8B, ConfigWan5B
from pagedvid.units import GIB

WAN_1_3B = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
WAN_5B = {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}
WAN_14B = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
SHARED = {"attention_head_dim": 128, "in_channels": 16, "out_channels": 16, "text_dim": 4096, "freq_dim": 256}
OF_DIFFUSERS = {
    "self-forcing": ("WanTransformer3DModel", WAN_1_3B),
    "krea-14b": ("WanTransformer3DModel", WAN_14B),
    "longlive-2-5b": ("WanTransformer3DModel", WAN_5B),
    "skyreels-v2-1.3b": ("SkyReelsV2Transformer3DModel", {**WAN_1_3B, "inject_sample_info": True}),
    "skyreels-v2-14b": ("SkyReelsV2Transformer3DModel", WAN_14B),
}
"""Classes and arguments of the published config.json files."""
PUBLISHED = (*OF_DIFFUSERS, "magi-1-4.5b", "magi-1-24b", "hy-worldplay-8b", "hy-worldplay-5b")


def on_meta(name: str, weights_dtype: str) -> tuple[nn.Module, nn.ModuleList]:
    """The transformer and its blocks."""
    if name in OF_DIFFUSERS:
        class_name, sizes = OF_DIFFUSERS[name]
        transformer = empty_transformer(class_name, {**SHARED, **sizes}, "this test", torch.bfloat16)
        blocks = transformer.blocks
    else:
        with torch.device("meta"):
            transformer, blocks = of_its_own(name)
    if weights_dtype == "fp8":
        use_fp8(blocks)
    return transformer, blocks


def of_its_own(name: str) -> tuple[nn.Module, nn.ModuleList]:
    if name == "hy-worldplay-8b":
        network = Network8B(Config8B()).to(torch.bfloat16)
        return network, network.double_blocks
    if name == "hy-worldplay-5b":
        network = NetworkWan5B(ConfigWan5B()).to(torch.bfloat16)
        return network, network.blocks
    network = MagiNetwork(MAGI[name].network, torch.bfloat16)
    return network, network.videodit_blocks.layers


def num_bytes(module) -> int:
    tensors = [
        *module.parameters(),
        *(tensor for name, tensor in module.named_buffers() if not name.startswith("rope")),
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("name", PUBLISHED)
def test_bytes_of_the_cards_are_those_of_the_transformers(name):
    formats = weight_formats(find_card(name))
    for weights_dtype in ("bf16", "fp8"):
        transformer, blocks = on_meta(name, weights_dtype)
        in_blocks, block = num_bytes(blocks), num_bytes(blocks[0])
        everything = num_bytes(transformer)
        assert formats[weights_dtype].device == everything and formats[weights_dtype].host == 0
        away = formats["offload" if weights_dtype == "bf16" else "fp8-offload"]
        assert (away.device, away.host) == (everything - in_blocks + 2 * block, in_blocks)


@pytest.mark.parametrize("weights_dtype", ["bf16", "fp8"])
def test_an_offloaded_transformer_holds_as_many_bytes(weights_dtype):
    """Built for real, with fewer and narrower blocks of the published kind: 128 channels a head."""
    sizes = {"num_attention_heads": 2, "num_layers": 3, "ffn_dim": 512}
    transformer = empty_transformer(
        "WanTransformer3DModel", {**SHARED, **sizes, "text_dim": 64}, "test", torch.bfloat16
    )
    if weights_dtype == "fp8":
        use_fp8(transformer.blocks)
    block, in_blocks = num_bytes(transformer.blocks[0]), num_bytes(transformer.blocks)
    transformer.to_empty(device="cpu")
    held = offload(transformer, transformer.blocks, torch.device("cpu"))
    assert (held.device_bytes, held.host_bytes) == (BLOCKS_ON_DEVICE * block, in_blocks)


def test_as_many_blocks_are_counted_as_are_held():
    assert BLOCKS_ON_DEVICE == offloading.BLOCKS_ON_DEVICE


def test_formats_from_the_largest_on_the_device_to_the_smallest():
    for name in PUBLISHED:
        formats = weight_formats(find_card(name))
        assert list(formats) == ["bf16", "fp8", "offload", "fp8-offload", "none"]
        on_device = [size.device for size in formats.values()]
        assert on_device == sorted(on_device, reverse=True) and on_device[-1] == 0


def test_cards_without_a_block_have_nominal_weights_only():
    for card, _ in all_cards().values():
        formats = weight_formats(card)
        if card.name not in PUBLISHED:
            assert {name: size.device for name, size in formats.items()} == {**card.weights, "none": 0}


@pytest.mark.parametrize(("name", "least"), [("bf16", 0), ("fp8", 10), ("offload", 20), ("fp8-offload", 21)])
def test_smaller_weights_leave_more_for_streams(name, least):
    card = find_card("krea-14b")
    question = Question(card, card.resolution, card.window, 48 * GIB, name)
    assert 48 * GIB - question.weights_bytes > least * GIB
