"""LoRAs among the settings: how they are written, in files and on the command line."""

from __future__ import annotations

import json

import pytest

from pagedvid.cli.main import build_parser
from pagedvid.cli.options import resolve_options
from pagedvid.config.loras import Lora, read_lora
from pagedvid.config.sections import Config, ModelConfig, frame_settings
from pagedvid.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "path", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("/x/y.pt:-1", "/x/y.pt", -1.0),
        ("a:1e-2", "a", 0.01),
        ("a:2:0.5", "a:2", 0.5),
        ("C:style", "C:style", 1.0),
        ("a b:.5", "a b", 0.5),
    ],
)
def test_the_scale_is_what_follows_the_last_colon_if_it_is_a_number(written, path, scale):
    assert read_lora(written) == Lora(path, scale)
    assert read_lora(str(Lora(path, scale))) == Lora(path, scale)


@pytest.mark.parametrize("written", ["", 3, None, ["a"], "a:1000", "a:1.2.3", "a:1e99"])
def test_others_are_refused(written):
    with pytest.raises(ValueError):
        read_lora(written)
    with pytest.raises(ConfigError, match=r"model.loras is .*; allowed is a list of PATH or PATH:SCALE, such as \[sty"):
        ModelConfig(loras=[written])


def test_a_single_text_is_no_list():
    with pytest.raises(ConfigError, match=r"model.loras is 'a.safetensors'; allowed is a list of PATH"):
        ModelConfig(loras="a.safetensors")


def test_they_are_written_as_they_are_read_and_decide_the_frames():
    config = ModelConfig(loras=["a.safetensors:0.8", "b"])
    assert config.loras == (Lora("a.safetensors", 0.8), Lora("b", 1.0))
    assert config.written_field("loras") == ["a.safetensors:0.8", "b:1.0"]
    assert ModelConfig(loras=config.written_field("loras")) == config == ModelConfig(loras=config.loras)
    settings = frame_settings(Config(model=config))
    assert json.loads(json.dumps(settings))["model.loras"] == ["a.safetensors:0.8", "b:1.0"]


def resolved(*words: str) -> tuple[Lora, ...]:
    args = build_parser().parse_args(["generate", "--prompts", "p.txt", "--out", "o", *words])
    return resolve_options(args).config.model.loras


def test_flags_take_the_place_of_the_file_and_may_be_repeated(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("model:\n  loras: [x.safetensors, y.safetensors:2]\n")
    assert resolved("--config", str(file)) == (Lora("x.safetensors"), Lora("y.safetensors", 2.0))
    assert resolved("--config", str(file), "--lora", "a:0.5", "--lora", "b") == (Lora("a", 0.5), Lora("b"))
    assert resolved("--set", "model.loras=[a.safetensors:0.5]") == (Lora("a.safetensors", 0.5),)
    assert resolved() == ()
