"""The network: packed chunks equal single ones, one attend call per layer, latents and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pagedvid.models.demo.latents import LATENT_CHANNELS, TOKENS_PER_FRAME, images_of, patches_of
from pagedvid.models.demo.transformer import Transformer, TransformerConfig, plain_attention

CONFIG = TransformerConfig(width=64, num_heads=1, num_layers=2)
SIZE = CONFIG.chunk_tokens


class ChunkAttend:
    """Dense attention inside each chunk; remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Tensor, Tensor]] = []

    def __call__(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        self.calls.append((layer, q_THD, k_THD))
        chunks = zip(*(x.split(SIZE) for x in (q_THD, k_THD, v_THD)), strict=True)
        outs = [F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in qkv)).transpose(0, 1) for qkv in chunks]
        return torch.cat(outs)


@pytest.fixture(scope="module")
def network() -> Transformer:
    torch.manual_seed(0)
    network = Transformer(CONFIG).requires_grad_(False)
    for parameter in network.parameters():  # gates start at zero: nothing would pass through the blocks
        parameter += 0.05 * torch.randn_like(parameter)
    return network


@pytest.fixture(scope="module")
def inputs(network: Transformer) -> tuple[Tensor, Tensor, Tensor]:
    words = torch.randint(0, CONFIG.num_words, (3, CONFIG.max_words))
    return torch.randn(3 * SIZE, LATENT_CHANNELS), torch.tensor([1.0, 0.4, 0.0]), network.text(words)


def test_packed_chunks_give_what_each_gives_alone(network: Transformer, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    latents, levels, text = inputs
    packed = network(latents, levels, text, ChunkAttend())
    alone = [
        network(latents[i * SIZE : (i + 1) * SIZE], levels[i : i + 1], text[i : i + 1], ChunkAttend()) for i in range(3)
    ]
    assert packed.shape == latents.shape
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)


def test_one_prompt_for_several_chunks_is_the_same_as_repeating_it(
    network: Transformer, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    latents, levels, text = inputs
    shared = network(latents, levels, text[:1], ChunkAttend())
    repeated = network(latents, levels, text[:1].expand(3, -1, -1), ChunkAttend())
    assert torch.allclose(shared, repeated, atol=1e-5)


def test_prompt_and_level_change_the_prediction(network: Transformer, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    latents, levels, text = inputs
    reference = network(latents, levels, text, ChunkAttend())
    assert (network(latents, levels, text.flip(0), ChunkAttend()) - reference).abs().max() > 1e-3
    assert (network(latents, levels.flip(0), text, ChunkAttend()) - reference).abs().max() > 1e-3


def test_each_layer_attends_once_with_normalised_queries_and_keys(
    network: Transformer, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    attend = ChunkAttend()
    network(*inputs, attend)
    assert [layer for layer, _, _ in attend.calls] == list(range(CONFIG.num_layers))
    for layer, q, k in attend.calls:
        assert q.shape == k.shape == (3 * SIZE, CONFIG.num_heads, CONFIG.head_dim)
        block = network.blocks[layer]
        for x, norm in ((q, block.q_norm), (k, block.k_norm)):
            assert torch.allclose((x / norm.gain).square().mean(-1), torch.ones(3 * SIZE, 1), atol=1e-3)


def test_plain_attention_is_scaled_attention() -> None:
    q, k, v = torch.randn(2, 3, 5, 64), torch.randn(2, 3, 7, 64), torch.randn(2, 3, 7, 64)
    assert torch.allclose(plain_attention(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-5)


def test_patches_are_in_frame_row_column_order_and_go_back() -> None:
    images = torch.from_numpy(np.random.default_rng(0).random((2, 8, 32, 32, 3)))
    patches = patches_of(images)
    assert patches.shape == (2, 8 * TOKENS_PER_FRAME, LATENT_CHANNELS)
    assert torch.equal(patches[1, 3 * 16 + 2 * 4 + 1].view(8, 8, 3), images[1, 3, 16:24, 8:16])
    assert torch.equal(images_of(patches), images)
