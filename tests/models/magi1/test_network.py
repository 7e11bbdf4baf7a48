"""One plain call of the network without a cache, against recordings of both ways it is built."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pagedvid.engine.schedule import Range
from pagedvid.models.magi1.network import channel_order, magi_rotary
from pagedvid.models.magi1.pipeline import MagiModel, frames_of, tokens_of
from pagedvid.models.magi1.spec import FrameConfig, MagiConfig, NetworkConfig, SamplingConfig
from pagedvid.models.magi1.weights import load_magi
from pagedvid.rotary.tables import rotate
from tests.models.magi1.recordings import (
    CHUNK_FRAMES,
    DATA,
    FRAMES_A,
    FRAMES_B,
    NETWORK_A,
    NETWORK_B,
    TOLERANCE,
    RecordedModel,
    largest_difference,
    tensors,
)

CASES = [("a", NETWORK_A, FRAMES_A, TOLERANCE), ("b", NETWORK_B, FRAMES_B, 2 * TOLERANCE)]


class DenseAttend:
    """Every range sees the ranges that `seen` names, with plain softmax attention."""

    def __init__(self, model: MagiModel, seen: list[tuple[int, int]]) -> None:
        self.model, self.seen = model, seen

    def __call__(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, /) -> Tensor:
        size = self.model.geometry.chunk_tokens
        cos, sin = (table.unsqueeze(1) for table in self.model.rope.tables(0, len(q_THD)))
        q, k = (rotate(x, cos, sin).transpose(0, 1) for x in (q_THD, k_THD))
        outs = []
        for number, (first, stop) in enumerate(self.seen):
            rows, keys = slice(number * size, (number + 1) * size), slice(first * size, stop * size)
            out = F.scaled_dot_product_attention(
                q[:, rows], k[:, keys], v_THD.transpose(0, 1)[:, keys], enable_gqa=True
            )
            outs.append(out.transpose(0, 1))
        return torch.cat(outs)


def plain_call(
    name: str, network: NetworkConfig, frames: FrameConfig
) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    """Recording, velocity [C, F, H, W] and hidden states after each layer."""
    recorded = tensors(f"forward_{name}")
    config = MagiConfig("magi-1-tiny", network, frames, SamplingConfig(cfg_number=1))
    model = RecordedModel(config, load_magi(config, DATA / f"weights_{name}.safetensors").network)
    inputs = {"embeddings": {"embeddings": recorded["captions"], "mask": recorded["caption_mask"]}}
    condition = model.prepare("recorded", inputs, 1)
    ranges = [
        Range(range(i * CHUNK_FRAMES, (i + 1) * CHUNK_FRAMES), float(level))
        for i, level in enumerate(recorded["call.000.t"])
    ]
    hidden: list[Tensor] = []
    for layer in model.network.videodit_blocks.layers:
        layer.register_forward_hook(lambda module, given, out: hidden.append(out))
    attend = DenseAttend(model, [tuple(pair) for pair in _seen(name)])
    out = model.forward(tokens_of(recorded["call.000.x"]), ranges, [condition] * len(ranges), attend)
    return recorded, frames_of(out, frames), hidden


def _seen(name: str) -> list[list[int]]:
    import json

    return json.loads((DATA / f"forward_{name}.calls.json").read_text())[0]["k_range_chunks"]


@pytest.mark.parametrize(("name", "network", "frames", "tolerance"), CASES, ids=["a", "b"])
def test_velocity_and_hidden_states_of_a_plain_call(name, network, frames, tolerance):
    recorded, velocity, hidden = plain_call(name, network, frames)
    assert largest_difference(velocity, recorded["call.000.velocity"]) <= tolerance
    for number, states in enumerate(hidden):
        assert largest_difference(states, recorded[f"call.000.layer.{number}.hidden_out"]) <= TOLERANCE


@pytest.mark.parametrize(("name", "network", "frames", "tolerance"), CASES, ids=["a", "b"])
def test_rotary_tables_and_condition_of_a_plain_call(name, network, frames, tolerance):
    recorded = tensors(f"forward_{name}")
    bands = tensors(f"weights_{name}")["rope.bands"]
    turning = recorded["call.000.embed.rope_cos"].shape[1]
    for table, key in zip(magi_rotary(bands, frames.rows, frames.columns).tables(0, 72), ("cos", "sin"), strict=True):
        assert largest_difference(table[:, :turning], recorded[f"call.000.embed.rope_{key}"][:72]) <= 1e-5
        still = table[:, turning:]
        assert still.shape[1] == len(bands) and bool((still == (1 if key == "cos" else 0)).all())


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_scores_do_not_notice_the_order_of_channels(head_dim: int):
    """The published rotation of 3/4 of the channels, retold, against the rotation of pairs half a head apart."""
    order, draw = channel_order(head_dim), torch.Generator().manual_seed(3)
    assert sorted(order.tolist()) == list(range(head_dim))
    q, k = torch.randn(2, 5, head_dim, generator=draw)
    turning = 3 * head_dim // 8
    angles = torch.rand(5, turning, generator=draw) * 6

    def published(u: Tensor) -> Tensor:
        first, second, still = u.split([turning, turning, head_dim - 2 * turning], dim=1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, first * sin + second * cos, still], dim=1)

    padded = torch.cat([angles, torch.zeros(5, head_dim // 8)], dim=1)
    ours = [rotate(u[:, order], padded.cos(), padded.sin()) for u in (q, k)]
    assert torch.allclose(published(q) @ published(k).T, ours[0] @ ours[1].T, atol=1e-5)


def test_latents_become_tokens_and_come_back():
    latents = torch.arange(4 * 3 * 6 * 8, dtype=torch.float32).reshape(4, 3, 6, 8)
    tokens = tokens_of(latents)
    assert tokens.shape == (36, 16)
    assert tokens[5].reshape(2, 2, 4)[1, 0].tolist() == latents[:, 0, 2 * 1 + 1, 2 * 1].tolist()
    assert torch.equal(frames_of(tokens, FRAMES_A), latents)
