"""The network: packed chunks equal single ones, one attend call per layer, latents and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pagedvid.models.demo.captions import read_prompt
from pagedvid.models.demo.network import Canvas, Expectation, Transformer
from pagedvid.models.demo.spec import LATENT_CHANNELS, TOKENS_PER_FRAME, TransformerConfig, images_of, patches_of
from pagedvid.models.demo.vocabulary import ABSENT, ATTRIBUTES, NUM_VALUES

CONFIG = TransformerConfig(width=64, num_heads=1, num_layers=2)
SIZE = CONFIG.chunk_tokens
PROMPTS = ("a large red circle moving left on teal", "a blue shape and a small square bouncing on gray", "a shape")
Inputs = tuple[Tensor, Tensor, Expectation]


def slots_of(*prompts: str) -> Tensor:
    return torch.from_numpy(np.stack([read_prompt(prompt) for prompt in prompts]))


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
def inputs(network: Transformer) -> tuple[Tensor, Tensor, Expectation]:
    expectation = network.canvas(slots_of(*PROMPTS))
    return torch.randn(3 * SIZE, LATENT_CHANNELS), torch.tensor([1.0, 0.4, 0.0]), expectation


def part(expectation: Expectation, numbers: list[int]) -> Expectation:
    """Those of some prompts of a batch, in the given order."""
    return Expectation.stack([expectation.of_prompt(number) for number in numbers])


def test_packed_chunks_give_what_each_gives_alone(network: Transformer, inputs: Inputs) -> None:
    latents, levels, expected = inputs
    packed = network(latents, levels, expected, ChunkAttend())
    alone = [
        network(latents[i * SIZE : (i + 1) * SIZE], levels[i : i + 1], part(expected, [i]), ChunkAttend())
        for i in range(3)
    ]
    assert packed.shape == latents.shape
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)


def test_one_prompt_for_several_chunks_is_the_same_as_repeating_it(network: Transformer, inputs: Inputs) -> None:
    latents, levels, expected = inputs
    shared = network(latents, levels, part(expected, [0]), ChunkAttend())
    repeated = network(latents, levels, part(expected, [0, 0, 0]), ChunkAttend())
    assert torch.allclose(shared, repeated, atol=1e-5)


def test_prompt_and_level_change_the_prediction(network: Transformer, inputs: Inputs) -> None:
    latents, levels, expected = inputs
    reference = network(latents, levels, expected, ChunkAttend())
    assert (network(latents, levels, part(expected, [2, 1, 0]), ChunkAttend()) - reference).abs().max() > 1e-3
    assert (network(latents, levels.flip(0), expected, ChunkAttend()) - reference).abs().max() > 1e-3


def test_each_layer_attends_once_with_normalised_queries_and_keys(network: Transformer, inputs: Inputs) -> None:
    attend = ChunkAttend()
    network(*inputs, attend)
    assert [layer for layer, _, _ in attend.calls] == list(range(CONFIG.num_layers))
    for layer, q, k in attend.calls:
        assert q.shape == k.shape == (3 * SIZE, CONFIG.num_heads, CONFIG.head_dim)
        block = network.blocks[layer]
        for x, norm in ((q, block.q_norm), (k, block.k_norm)):
            assert torch.allclose((x / norm.gain).square().mean(-1), torch.ones(3 * SIZE, 1), atol=1e-3)


def test_a_prompt_expects_the_same_alone_and_in_a_batch(network: Transformer) -> None:
    together = network.canvas(slots_of(*PROMPTS))
    for number, prompt in enumerate(PROMPTS):
        alone = network.canvas(slots_of(prompt)).of_prompt(0)
        for one, other in zip(vars(alone).values(), vars(together.of_prompt(number)).values(), strict=True):
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("prompts", [("a red shape", "a blue shape"), ("a shape", "a shape and a shape")])
def test_every_part_of_the_expectation_depends_on_the_prompt(network: Transformer, prompts: tuple[str, str]) -> None:
    expectation = network.canvas(slots_of(*prompts))
    for first, second in (tensor.unbind() for tensor in vars(expectation).values()):
        assert (first - second).abs().max() > 1e-3


def test_a_thing_that_is_absent_adds_nothing_to_any_place() -> None:
    torch.manual_seed(1)
    canvas = Canvas(CONFIG).requires_grad_(False)
    for layer in (canvas.out, canvas.picture):
        layer.weight.normal_()
    slots = slots_of("a large red circle moving left on teal")
    before = canvas(slots)
    for slot in range(len(ATTRIBUTES)):
        canvas.values.weight[slot * NUM_VALUES + ABSENT] += 1.0
    after = canvas(slots)
    assert torch.equal(before.hidden_SW, after.hidden_SW) and torch.equal(before.picture_SC, after.picture_SC)
    assert not torch.equal(before.pooled_W, after.pooled_W)


def test_patches_are_in_frame_row_column_order_and_go_back() -> None:
    images = torch.from_numpy(np.random.default_rng(0).random((2, 8, 32, 32, 3)))
    patches = patches_of(images)
    assert patches.shape == (2, 8 * TOKENS_PER_FRAME, LATENT_CHANNELS)
    assert torch.equal(patches[1, 3 * 16 + 2 * 4 + 1].view(8, 8, 3), images[1, 3, 16:24, 8:16])
    assert torch.equal(images_of(patches), images)
