"""Networks that run from recorded graphs: the plain videos, and when graphs are made, used and forgotten.

The graphs are tapes (taped.py); those of CUDA are in test_captured_on_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pagedvid.cli.options import add_config_options, resolve_options
from pagedvid.config.sections import Config, EngineConfig, ModelConfig, frame_settings
from pagedvid.errors import ConfigError, NonFiniteError, ShapeError
from pagedvid.models.build import resolve
from pagedvid.networks import captured
from pagedvid.networks.captured import capture
from pagedvid.networks.compiled import compile_blocks
from tests.models.specs import spec_of
from tests.networks.families import FAMILIES, play
from tests.networks.one_network import LAYERS, TOKENS, WIDTH, Attention, Network, arguments
from tests.networks.taped import TapedGraph

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_gradients_and_no_graphs_of_other_tests() -> Iterator[None]:
    TapedGraph.made.clear()
    with torch.no_grad():
        yield
    TapedGraph.made.clear()


# ---------------------------------------------------------------------- every family


@pytest.mark.parametrize("name", FAMILIES)
def test_videos_that_come_and_go_are_the_same_to_the_last_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain network and the recorded one call the same operations. Weights that move are left out here."""
    if name == "skyreels":
        monkeypatch.setattr("pagedvid.models.common.network_weights.offload", lambda network, blocks, device: None)
    model, requests = FAMILIES[name](tmp_path / "model")
    expected = play(model, requests)
    capture(model.network, CPU, TapedGraph)
    for id, shown in play(model, requests).items():
        assert torch.equal(shown, expected[id]), id
    num_layers = model.geometry.num_layers
    assert len(TapedGraph.made) % (num_layers + 1) == 0
    assert sum(graph.num_runs for graph in TapedGraph.made) > len(TapedGraph.made), "each ran when it was recorded"


# ---------------------------------------------------------------------- one network


def network() -> Network:
    torch.manual_seed(0)
    made = Network()
    capture(made, CPU, TapedGraph)
    return made


def assert_right(made: Network, seed: int, num_tokens: int = TOKENS) -> Tensor:
    """A forward with arguments and an attention of its own gives what the plain network gives."""
    given, attend = arguments(seed, num_tokens), Attention(seed)
    out = made(*given, attend)
    assert attend.layers == list(range(LAYERS))
    assert torch.equal(out, Network.forward(made, *given, Attention(seed)))
    made.num_calls -= 1
    return out


def test_the_first_forward_is_plain_the_second_recorded_and_later_ones_run() -> None:
    made = network()
    for seed, num_graphs in enumerate((0, LAYERS + 1, LAYERS + 1, LAYERS + 1)):
        assert_right(made, seed)
        assert len(TapedGraph.made) == num_graphs
    assert made.num_calls == 2
    assert [graph.num_runs for graph in TapedGraph.made] == [3] * (LAYERS + 1)


def test_an_output_is_kept_when_the_next_forward_runs() -> None:
    made = network()
    outs = [assert_right(made, seed) for seed in range(4)]
    copies = [out.clone() for out in outs]
    assert_right(made, 9)
    assert all(map(torch.equal, outs, copies))


def test_every_layout_has_graphs_of_its_own_and_one_tensor_given_twice_is_another_layout() -> None:
    made = network()
    for seed in range(6):
        assert_right(made, seed, num_tokens=TOKENS + seed % 2)
    assert len(TapedGraph.made) == 2 * (LAYERS + 1)
    x, (one, _) = arguments(7)
    for number in range(3):
        out = made(x, [one, one], Attention(number))
        assert torch.equal(out, Network.forward(made, x, [one, one], Attention(number)))
    assert len(TapedGraph.made) == 3 * (LAYERS + 1)
    assert_right(made, 8)


def test_a_layout_that_was_not_met_for_long_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "MAX_LAYOUTS", 2)
    made = network()
    for num_tokens in (1, 1, 2, 1, 3, 1, 2, 2):  # 3 takes the place of 2, and not of 1
        assert_right(made, num_tokens, num_tokens)
    assert made.num_calls == 2 + 1 + 1 + 2
    assert len(TapedGraph.made) == 2 * (LAYERS + 1)


def test_graphs_are_recorded_anew_where_weights_have_moved() -> None:
    made = network()
    for seed in range(3):
        assert_right(made, seed)
    made.linear.weight.data = made.linear.weight.data * 3
    for seed in range(3):
        assert_right(made, seed)
    assert made.num_calls == 4 and len(TapedGraph.made) == 2 * (LAYERS + 1)
    made.linear.weight.mul_(2)  # in place: the graphs read the new numbers
    assert_right(made, 5)
    assert made.num_calls == 4


def test_an_error_of_attention_leaves_no_recording_behind() -> None:
    made = network()
    assert_right(made, 0)
    with pytest.raises(NonFiniteError, match="layer 1 has NaN"):
        made(*arguments(1), Attention(1, fails=True))
    assert not any(graph.was_abandoned for graph in TapedGraph.made), "attention runs outside of graphs"
    for seed in range(3):
        assert_right(made, seed)
    with pytest.raises(NonFiniteError, match="layer 1 has NaN"):
        made(*arguments(1), Attention(1, fails=True))
    assert_right(made, 2)


def test_an_error_of_the_network_ends_its_recording() -> None:
    made = network()
    assert_right(made, 0)
    made.fails = True
    with pytest.raises(ValueError, match="the network broke"):
        made(*arguments(1), Attention(1))
    assert [graph.was_abandoned for graph in TapedGraph.made] == [False, True]
    made.fails = False
    assert_right(made, 1)
    assert_right(made, 2)


class AsItComes:
    """A graph that lets operations run while they are recorded: a recorded forward is right, and a run is not."""

    def begin(self) -> None: ...

    end = abandon = replay = begin


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Layers()

    def forward(self, x_TW: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        return self.block(x_TW, attend)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_TW: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        for layer in range(LAYERS):
            q = self.linear(x_TW).unflatten(1, (2, -1))
            x_TW = x_TW + attend(layer, q, q + 1, q + 2).flatten(1)
        return x_TW


def test_blocks_that_were_compiled_by_the_plain_forward_are_not_compiled_again_to_be_recorded() -> None:
    """A compiler that runs inside of a recording would break it."""
    graphs: list[Any] = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    made = Compiled()
    compile_blocks([made.block], backend=counted)
    capture(made, CPU, AsItComes)
    for seed in range(2):
        x, _ = arguments(seed)
        out, attend = made(x, Attention(seed)), Attention(seed)
        torch.testing.assert_close(out, Layers.forward(made.block, x, attend))
    assert len(graphs) == 1
    torch.compiler.reset()


def test_what_a_recording_would_leave_out_is_refused() -> None:
    class Looks(Layers):
        def forward(self, x_TW: Tensor, attend: Callable[..., Tensor]) -> Tensor:
            return attend(0, x_TW, x_TW, x_TW, context=[(x_TW, x_TW)])

    made = Looks()
    capture(made, CPU, TapedGraph)
    with pytest.raises(ShapeError, match="attends to its own tokens and their history"):
        made(arguments(0)[0], Attention(0))


# ---------------------------------------------------------------------- settings


def test_devices_without_cuda_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.cuda_graphs is for CUDA devices, and model\.device is cpu"):
        resolve(Config(ModelConfig(cuda_graphs=True)))


def test_weights_that_move_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.offload moves them in every step; remove one of them"):
        spec_of("self-forcing", cuda_graphs=True, offload=True, device="cuda")


@pytest.mark.parametrize("name", ["hy-worldplay-8b", "hy-worldplay-5b"])
def test_models_whose_blocks_attend_in_two_ways_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} has blocks that attend in two ways .*; remove model.cuda_graphs"):
        spec_of(name, cuda_graphs=True, device="cuda")


def test_it_changes_frames_by_rounding_only_and_has_a_flag() -> None:
    import argparse

    exact = EngineConfig(reproducible=True)
    assert frame_settings(Config(ModelConfig(cuda_graphs=True))) == frame_settings(Config())
    assert frame_settings(Config(ModelConfig(cuda_graphs=True), engine=exact)) != frame_settings(Config(engine=exact))
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    assert resolve_options(parser.parse_args(["--cuda-graphs"])).config.model.cuda_graphs
