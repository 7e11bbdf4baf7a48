"""`pagedvid serve`: what is refused before anything starts."""

from __future__ import annotations

import socket

import pytest

from pagedvid.cli import variables
from pagedvid.cli.service_parts import served_model, session_limits
from pagedvid.config.sections import Config, GenerateConfig, ModelConfig
from pagedvid.config.serving import ServeConfig
from pagedvid.errors import ConfigError
from pagedvid.models.build import resolve
from tests.cli.test_without_libraries import COMMAND, run_without


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(variables.API_KEY, raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "video.example"])
@pytest.mark.parametrize("flags", [(), ("--no-api-key",), ("--open-to-everybody",)])
def test_nobody_is_let_in_by_mistake(command, host, flags):
    code, out, err = command("serve", "--host", host, *flags)
    assert (code, out) == (2, "")
    assert "--api-key-file FILE, or ask for it twice: --no-api-key --open-to-everybody" in err


def test_a_port_that_is_taken(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, err = command("serve", "--port", port, "--data", tmp_path / "data")
    assert code == 2
    assert f"--host 127.0.0.1 --port {port}: Address already in use; give another host or port" in err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("words", [("--port", "70000"), ("--port", "x"), ("--stop-seconds", "0"), ("--data", "")])
def test_wrong_words(command, words):
    assert command("serve", *words)[0] == 2


def test_keys(command, tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text("short")
    code, _, err = command("serve", "--api-key-file", file)
    assert (code, "holds no API key" in err) == (2, True)
    monkeypatch.setenv(variables.API_KEY, "short")
    code, _, err = command("serve", "--host", "0.0.0.0")
    assert (code, f"the variable {variables.API_KEY} holds no API key" in err) == (2, True)


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client", "websockets"])
def test_missing_libraries_are_named(missing, tmp_path):
    done = run_without((missing,), COMMAND, "serve", "--data", tmp_path / "data")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"No module named '{missing}'" in done.stderr
    assert "pip install pagedvid[serve]" in done.stderr
    assert not (tmp_path / "data").exists()


def test_what_clients_know_of_the_model():
    spec = resolve(Config())
    model = served_model(spec)
    assert (model.name, model.size, model.frames_per_second, model.default_num_frames) == ("demo", "256x256", 12.0, 48)
    scaled = served_model(resolve(Config(generate=GenerateConfig(scale=1, frames_per_second=6, num_frames=10_000))))
    assert (scaled.size, scaled.frames_per_second, scaled.default_num_frames) == ("32x32", 6.0, 2400)


@pytest.mark.parametrize(("name", "usual"), [("demo", 10.0), ("walk", 1.0)])
def test_what_is_led_does_not_run_far_ahead(name, usual):
    model = ModelConfig(name=name)
    assert session_limits(resolve(Config(model=model))).max_ahead_seconds == usual
    chosen = ServeConfig(max_ahead_seconds=4)
    assert session_limits(resolve(Config(model=model, serve=chosen))).max_ahead_seconds == 4.0


def test_models_that_give_latents_cannot_be_watched():
    with pytest.raises(ConfigError, match=r"magi-1-4\.5b gives latents, which nobody can watch"):
        served_model(resolve(Config(model=ModelConfig(name="magi-1-4.5b"))))
