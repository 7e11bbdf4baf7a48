"""Blocks in host memory: the same output to the last bit, two blocks on the device, and order kept after failures."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from pagedvid.errors import StateError
from pagedvid.models.common.fp8_linear import Fp8Linear, use_fp8
from pagedvid.models.common.offload import OffloadedBlocks, offload

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


class Block(nn.Module):
    """A linear layer, a parameter of its own in another dtype, and a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.shift = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.register_buffer("table", torch.randn(width))
        self.seen: list[int] = []

    def forward(self, x):
        self.seen.append(self.linear.weight.data_ptr())
        return torch.tanh(self.linear(x) + self.table) + self.shift.sum().to(x.dtype)


class Network(nn.Module):
    def __init__(self, num_blocks: int, width: int = 20) -> None:
        super().__init__()
        torch.manual_seed(num_blocks)
        self.first = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(num_blocks))
        self.requires_grad_(False)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 5])
def test_outputs_are_the_same_to_the_last_bit(num_blocks, device):
    network, x = Network(num_blocks).to(device), torch.randn(6, 20, device=device)
    expected = network(x)
    network.to("cpu")
    held = offload(network, network.blocks, torch.device(device))
    for _ in range(3):
        assert torch.equal(network(x), expected)
    assert held.device_bytes == 2 * held.host_bytes // num_blocks
    assert all(
        tensor.device.type == "cpu" for block in network.blocks for tensor in (*block.parameters(), *block.buffers())
    )
    assert network.first.weight.device.type == device


@pytest.mark.parametrize("num_blocks", [2, 3, 5])
def test_two_places_take_turns_and_every_block_is_copied_once_a_forward(num_blocks, monkeypatch):
    network, started = Network(num_blocks), []
    held = offload(network, network.blocks, torch.device("cpu"))
    real = held._copies.start
    monkeypatch.setattr(
        held._copies, "start", lambda slot, source: (started.append(source.data_ptr()), real(slot, source))
    )
    for _ in range(4):
        network(torch.randn(2, 20))
    order = [block.bytes.data_ptr() for block in held._blocks]
    if num_blocks == 2:
        assert started == order  # both stay where they are
    else:
        assert started == (order * 5)[: 4 * num_blocks + 1]  # the next forward's first block is already coming
    places = [block.seen for block in network.blocks]
    assert len({place for seen in places for place in seen}) == 2
    for forward in range(4):
        run = [seen[forward] for seen in places]
        assert all(one != other for one, other in pairwise(run))


def test_it_works_with_layers_in_eight_bits():
    network, x = Network(3), torch.randn(6, 20)
    plain = network(x)
    originals = [block.linear.weight.detach().clone() for block in network.blocks]
    use_fp8(network.blocks)
    for block, weight in zip(network.blocks, originals, strict=True):
        assert isinstance(block.linear, Fp8Linear)
        block.linear.hold(weight)
    expected = network(x)
    offload(network, network.blocks, torch.device("cpu"))
    assert torch.equal(network(x), expected)
    assert 0 < float((expected - plain).abs().max()) < 0.2


def test_after_an_error_the_next_forward_is_right():
    network, x = Network(4), torch.randn(6, 20)
    expected = network(x)
    offload(network, network.blocks, torch.device("cpu"))
    network(x)
    real = network.blocks[2].forward
    network.blocks[2].forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        network(x)
    network.blocks[2].forward = real
    assert torch.equal(network(x), expected)


def test_blocks_inside_one_another_are_refused():
    network = Network(2)
    offload(network, network.blocks, torch.device("cpu"))
    network.blocks[0].forward = lambda x: network.blocks[1](x)
    with pytest.raises(StateError, match="block 1 of an offloaded network was called while block 0 runs"):
        network(torch.randn(2, 20))


def test_weights_can_still_be_read():
    network = Network(3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    held = offload(network, network.blocks, torch.device("cpu"))
    network(torch.randn(2, 20))
    assert isinstance(held, OffloadedBlocks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
