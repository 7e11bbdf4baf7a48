"""Compiled blocks give what plain ones give, in two graphs whatever comes and goes, or say why they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor

from pagedvid.cli.main import main
from pagedvid.cli.options import add_config_options, resolve_options
from pagedvid.cli.threads import ThreadChoice
from pagedvid.config.sections import CacheConfig, Config, EngineConfig, ModelConfig, frame_settings
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.models.build import build_engine, resolve
from pagedvid.networks.compiled import compile_blocks, require_compiler
from tests.models.specs import spec_of
from tests.networks.families import FAMILIES, play

PROMPT = "a large red circle moving left on a black background"


@pytest.fixture(autouse=True)
def no_graph_of_other_tests() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", FAMILIES)
def test_videos_that_come_and_go_are_the_same_in_two_graphs(name: str, tmp_path: Path) -> None:
    """All blocks share both: one for a single range, one for any larger number of ranges."""
    graphs: list[Any] = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model, requests = FAMILIES[name](tmp_path / "model")
    expected = play(model, requests)
    compile_blocks(model.blocks, backend=counted)
    for id, shown in play(model, requests).items():
        torch.testing.assert_close(shown, expected[id], rtol=1e-4, atol=1e-4)
    assert 1 <= len(graphs) <= 2


@inductor.patch(compile_threads=1)  # further processes would begin by importing PyTorch
def test_a_compiled_run_from_its_settings_makes_the_plain_videos() -> None:
    """By the compiler that users get. Frames are uint8; a value between two levels may be rounded to the other one."""
    runs = []
    for is_compiled in (False, True):
        config = Config(ModelConfig(compile=is_compiled), CacheConfig(memory="4MiB", codec="bf16"))
        engine = build_engine(resolve(config), [PROMPT])
        engine.submit(VideoRequest("a", PROMPT, 8))
        runs.append(torch.cat([torch.from_numpy(output.frames).int() for output in engine.run()]))
    difference = (runs[0] - runs[1]).abs()
    assert int(difference.max()) <= 1 and float(difference.float().mean()) < 0.01


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1


class Plus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def test_what_is_not_one_graph_raises_and_does_not_run_uncompiled() -> None:
    block = Broken()
    compile_blocks([block], backend="eager")
    with pytest.raises(RuntimeError, match="graph_break"):
        block(torch.zeros(3))


def test_state_and_hooks_of_a_block_stay_as_they_are() -> None:
    block, seen = Plus(), []
    block.register_forward_pre_hook(lambda module, given: seen.append(given[0].is_contiguous()))
    compile_blocks([block], backend="eager")
    compile_blocks([block], backend="eager")
    assert torch.equal(block(torch.zeros(3, 3).T), torch.ones(3, 3)) and seen == [False]
    assert list(block.state_dict()) == ["weight"]
    block.weight.data = torch.full((3,), 5.0)
    assert torch.equal(block(torch.zeros(3)), torch.full((3,), 5.0))


def test_a_missing_compiler_is_named_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/not/there"))
    run = resolve(Config(ModelConfig(compile=True)))
    monkeypatch.setattr("pagedvid.models.build.load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(
        ConfigError, match=r"model\.compile: PyTorch cannot compile for cpu here .*/not/there.*apt install g\+\+"
    ):
        build_engine(run, [PROMPT])


def test_a_compiler_that_fails_is_named_with_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Dynamo is not supported on Python 3.99\nmore")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(
        ConfigError, match=r"cannot compile for cpu here \(Dynamo is not supported on Python 3.99\); in"
    ):
        require_compiler(torch.device("cpu"))


@pytest.mark.parametrize("name", ["hy-worldplay-8b", "hy-worldplay-5b"])
def test_models_whose_blocks_attend_in_two_ways_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} has blocks that attend in two ways .*; remove model.compile"):
        spec_of(name, compile=True)


def test_it_changes_frames_by_rounding_only() -> None:
    exact = EngineConfig(reproducible=True)
    assert frame_settings(Config(ModelConfig(compile=True))) == frame_settings(Config())
    assert frame_settings(Config(ModelConfig(compile=True), engine=exact)) != frame_settings(Config(engine=exact))


def test_the_flag_sets_it_and_no_other_number_of_threads_is_tried() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_config_options(parser)
    config = resolve_options(parser.parse_args(["--compile"])).config
    assert config.model.compile
    torch.set_num_threads(2)
    try:
        assert ThreadChoice.of(Config())._to_try and not ThreadChoice.of(config)._to_try
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("command", ["calibrate", "profile"])
def test_commands_that_change_what_blocks_compute_refuse_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--compile", "--out", "tables.safetensors"]) == 2
    assert (
        f"{command} changes what goes on inside of the model's blocks; remove model.compile" in capsys.readouterr().err
    )
