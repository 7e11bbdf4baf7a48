"""`pagedvid env` says what can run here and why the rest cannot."""

from __future__ import annotations

import platform

import pytest
import torch

from pagedvid.cli.main import main


def test_names_versions_devices_backends_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert lines["python"].endswith(platform.python_version())
    assert f"torch         {torch.__version__}" in text
    assert "  triton  no: it runs on cuda, not on cpu" in text
    assert "no: " in lines["flash-attn-2"] and "cuda" in lines["flash-attn-2"]
    assert lines["torch-cpu"].split()[1] == "yes"


def test_a_backend_runs_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    main(["env", "--device", "cpu"])
    text = capsys.readouterr().out
    assert "  torch   yes" in text and "  torch-cpu-fp8     yes" in text
    assert max(map(len, text.splitlines())) <= 80


def test_sizes_without_kernels_are_explained(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    main(["env", "--device", "cuda", "--head-dim", "96"])
    text = capsys.readouterr().out
    assert "head_dim is 96; it must be a power of two" in text
    assert "it runs on the device cpu, not on cuda" in text


def test_a_device_that_is_not_there_is_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["env", "--device", "cuda"]) == 0
    text = capsys.readouterr().out
    assert "PyTorch can use no device cuda here" in text and max(map(len, text.splitlines())) <= 80
