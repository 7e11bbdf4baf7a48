"""SGLang finds the plugin, and it does nothing unless it is named."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import tomllib

from pagedvid.errors import ConfigError
from pagedvid.integrations import sglang as integration
from tests.engines.sglang import on_cpu

GROUP = "sglang.multimodal_gen.plugins"
PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """SGLang's plugin system, with pagedvid installed as its pyproject.toml says, and nothing loaded yet."""
    (entry,) = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"][GROUP].items()
    info = tmp_path / "pagedvid-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pagedvid\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entry[0]} = {entry[1]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = on_cpu.module("platforms.plugins")
    found._reset_lifecycle_for_tests()
    yield found
    found._reset_lifecycle_for_tests()
    found.HookRegistry.reset()


@pytest.mark.parametrize(("named", "num_hooks"), [("pagedvid", 3), ("other, pagedvid", 3), ("other", 0), (None, 0)])
def test_hooks_are_registered_only_if_the_plugin_is_named(plugins, monkeypatch, named, num_hooks):
    if named is None:
        monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("SGLANG_PLUGINS", named)
    plugins.load_plugins()
    assert len(plugins.HookRegistry._hooks) == num_hooks


def test_the_hooks_name_functions_that_are_there(plugins, monkeypatch):
    import pkgutil

    monkeypatch.setenv("SGLANG_PLUGINS", "pagedvid")
    plugins.load_plugins()
    for target in plugins.HookRegistry._hooks:
        owner, _, name = target.rpartition(".")
        assert callable(vars(pkgutil.resolve_name(owner))[name])


def test_another_version_registers_nothing_and_is_named(plugins, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["sglang.version"], "__version__", "0.6.0")
    with pytest.raises(ConfigError, match=r"SGLang is version 0\.6\.0; this plugin is written for 0\.5\.23"):
        integration.install()
    monkeypatch.setenv("SGLANG_PLUGINS", "pagedvid")
    with caplog.at_level(logging.ERROR):
        plugins.load_plugins()
    assert not plugins.HookRegistry._hooks
    assert any("pagedvid" in record.getMessage() and record.exc_info for record in caplog.records)


def test_without_sglang(monkeypatch):
    monkeypatch.setitem(sys.modules, f"{on_cpu.RUNTIME}.platforms.plugins", None)
    with pytest.raises(ConfigError, match=r"cannot be imported .*: install sglang 0\.5\.23"):
        integration.install()
