"""Another version of vLLM-Omni, or none, is an error at import that says what to install."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata

import pytest

from pagedvid import ConfigError

MODULES = ["pagedvid.integrations.vllm_omni.runner", "pagedvid.integrations.vllm_omni.lingbot"]


@pytest.mark.parametrize("module", MODULES)
def test_another_version(module, monkeypatch):
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(metadata, "version", lambda name: "0.31.0")
    with pytest.raises(ConfigError, match=r"needs vllm-omni 0\.30\.0; installed is 0\.31\.0.*pip install"):
        importlib.import_module(module)


@pytest.mark.parametrize("module", MODULES)
def test_none(module, monkeypatch):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ConfigError, match=r"none is installed: pip install vllm-omni==0\.30\.0"):
        importlib.import_module(module)
