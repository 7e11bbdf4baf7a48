"""Networks that run from recorded graphs: the plain videos, and when graphs are made, used and forgotten.

On a CPU the graphs are tapes (taped.py). On a GPU they are CUDA's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pagedvid.cli.options import add_config_options, resolve_options
from pagedvid.config.sections import AttentionConfig, CacheConfig, Config, EngineConfig, ModelConfig, frame_settings
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError, NonFiniteError
from pagedvid.models.build import build_engine, resolve
from pagedvid.networks import captured
from pagedvid.networks.captured import capture
from tests.models.specs import spec_of
from tests.networks.families import FAMILIES, play
from tests.networks.taped import TapedGraph

CPU = torch.device("cpu")
LAYERS, TOKENS, WIDTH = 3, 5, 4
PROMPT = "a large red circle moving left on a black background"


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
        monkeypatch.setattr("pagedvid.models.wan.base.weights.offload", lambda network, blocks, device: None)
    model, requests = FAMILIES[name](tmp_path / "model")
    expected = play(model, requests)
    capture(model.network, CPU, TapedGraph)
    for id, shown in play(model, requests).items():
        assert torch.equal(shown, expected[id]), id
    num_layers = model.geometry.num_layers
    assert len(TapedGraph.made) % (num_layers + 1) == 0
    assert sum(graph.num_runs for graph in TapedGraph.made) > len(TapedGraph.made), "each ran when it was recorded"


# ---------------------------------------------------------------------- one network


class Network(nn.Module):
    """Layers of attention, and what may go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.num_calls = 0
        self.fails = False

    def forward(self, x_TW: Tensor, more: list[Tensor], attend: Callable[..., Tensor]) -> Tensor:
        self.num_calls += 1
        for layer in range(LAYERS):
            q = self.linear(x_TW).unflatten(1, (2, -1))
            if self.fails and layer == 1:
                raise ValueError("the network broke")
            x_TW = x_TW + attend(layer, q, q + 1, q + sum(each.sum() for each in more)).flatten(1)
        return x_TW * 2


class Attention:
    """Different in every forward, as the history is."""

    def __init__(self, number: int, fails: bool = False) -> None:
        self.number, self.fails = number, fails
        self.layers: list[Any] = []

    def __call__(self, layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.layers.append(layer)
        if self.fails and layer == 1:
            raise NonFiniteError("layer 1 has NaN")
        return (q * k).cos() + self.number * v + layer


def network() -> Network:
    torch.manual_seed(0)
    made = Network()
    capture(made, CPU, TapedGraph)
    return made


def arguments(seed: int, num_tokens: int = TOKENS) -> tuple[Tensor, list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, WIDTH, generator=draw), [torch.randn(2, generator=draw) for _ in range(2)]


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


# ---------------------------------------------------------------------- settings


def test_devices_without_cuda_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.cuda_graphs is for CUDA devices, and model\.device is cpu"):
        resolve(Config(ModelConfig(cuda_graphs=True)))


def test_weights_that_move_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.offload moves them in every step; remove one of them"):
        spec_of("self-forcing", cuda_graphs=True, offload=True, device="cuda")


@pytest.mark.parametrize("name", ["hy-worldplay-8b", "hy-worldplay-5b"])
def test_models_whose_blocks_attend_in_two_ways_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} can be neither .*remove model.cuda_graphs"):
        spec_of(name, cuda_graphs=True, device="cuda")


def test_it_changes_frames_by_rounding_only_and_has_a_flag() -> None:
    import argparse

    exact = EngineConfig(reproducible=True)
    assert frame_settings(Config(ModelConfig(cuda_graphs=True))) == frame_settings(Config())
    assert frame_settings(Config(ModelConfig(cuda_graphs=True), engine=exact)) != frame_settings(Config(engine=exact))
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    assert resolve_options(parser.parse_args(["--cuda-graphs"])).config.model.cuda_graphs


# ---------------------------------------------------------------------- a GPU


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@NEEDS_CUDA
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


@NEEDS_CUDA
@pytest.mark.parametrize("is_compiled", [False, True])
def test_on_a_gpu_videos_are_those_of_the_plain_network(is_compiled: bool) -> None:
    """uint8 frames of two videos; a code beside an edge may get another level when sums are rounded differently."""
    runs = []
    for is_recorded in (False, True):
        model = ModelConfig(device="cuda", cuda_graphs=is_recorded, compile=is_compiled and is_recorded)
        config = Config(model, CacheConfig(memory="4MiB", codec="bf16"), AttentionConfig())
        engine = build_engine(resolve(config), [PROMPT])
        for number in range(2):
            engine.submit(VideoRequest(f"video-{number}", PROMPT, 24 + 24 * number, seed=number))
        runs.append(torch.stack([torch.from_numpy(output.frames).float() for output in engine.run()]))
    assert float((runs[0] - runs[1]).square().mean()) < 1.0
