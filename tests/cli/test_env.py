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
    assert lines["scratch"].split(maxsplit=1)[1] == "no: it runs on cuda, not on cpu"
    assert "no: " in lines["flash-attn-2"] and "cuda" in lines["flash-attn-2"]
    assert lines["torch-cpu"].split()[1] == "yes"


def test_the_cpu_backend_runs_on_the_cpu_only(capsys: pytest.CaptureFixture[str]) -> None:
    main(["env", "--device", "cpu"])
    assert "  torch    yes" in capsys.readouterr().out


def test_sizes_without_kernels_are_explained(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    main(["env", "--device", "cuda", "--head-dim", "96"])
    text = capsys.readouterr().out
    assert "head_dim is 96; it must be a power of two" in text
    assert "it runs on the device cpu, not on cuda" in text
