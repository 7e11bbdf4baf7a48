"""Where settings come from: defaults < YAML file < command line flags < `--set section.key=value`.

Every value keeps its source, so that an error can name the line to change and `pagedvid config show` can print it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from pagedvid.config.sections import SECTIONS, Config
from pagedvid.errors import ConfigError
from pagedvid.files.plain_yaml import MAX_YAML_BYTES, YamlError, compose, entries, line_of, read_scalar, value_of
from pagedvid.files.text import read_text
from pagedvid.shown import short, shown, unknown


@dataclass(frozen=True)
class Setting:
    """One value that somebody wrote."""

    section: str
    key: str
    value: object
    source: str
    """Where it was written: "demo.yaml:12", "--frames" or "--set"."""


@dataclass(frozen=True)
class ResolvedConfig:
    """The settings in force, and where each of them comes from."""

    config: Config
    sources: dict[str, str]
    """Source by "section.key"; "default" where nobody wrote a value."""


def load_config(path: str | Path) -> Config:
    """The defaults, overridden by the settings of a YAML file. Raises `ConfigError`."""
    return resolve(read_file(Path(path))).config


def resolve(settings: Iterable[Setting]) -> ResolvedConfig:
    """The defaults, overridden by these settings; a later one wins over an earlier one. Raises `ConfigError`."""
    values: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    sources = {f"{name}.{key}": "default" for name, section in SECTIONS.items() for key in section.field_names()}
    for setting in settings:
        _check_section(setting.section, setting.source)
        _check_key(setting)
        try:
            value = SECTIONS[setting.section].read_field(setting.key, setting.value)
        except ConfigError as error:
            raise ConfigError(f"{setting.source}: {error}") from None
        values[setting.section][setting.key] = value
        sources[f"{setting.section}.{setting.key}"] = setting.source
    config = Config(**{name: section(**values[name]) for name, section in SECTIONS.items()})  # type: ignore[arg-type]
    return ResolvedConfig(config, sources)


def _check_section(section: str, source: str) -> None:
    if section not in SECTIONS:
        raise ConfigError(f"{source}: unknown section {unknown(section, tuple(SECTIONS))}")


def _check_key(setting: Setting) -> None:
    known = SECTIONS[setting.section].field_names()
    if setting.key not in known:
        raise ConfigError(f"{setting.source}: unknown key {unknown(setting.key, known, setting.section + '.')}")


def read_assignment(assignment: str) -> Setting:
    """The setting of `--set section.key=value`; the value is read as in the YAML file. Raises `ConfigError`."""
    target, equals, value = assignment.partition("=")
    section, dot, key = target.strip().partition(".")
    if not (equals and dot):
        raise ConfigError(f"--set {short(assignment)}: write it as section.key=value, such as cache.codec=int4")
    return Setting(section, key, read_value(value, f"--set {target.strip()}"), "--set")


def read_value(written: str, source: str) -> object:
    """A single value as YAML reads it: "4" -> 4, "null" -> None, "off" -> "off". Raises `ConfigError`."""
    try:
        return read_scalar(written)
    except YamlError as error:
        raise ConfigError(f"{short(source)}: {shown(written)} cannot be read as a value: {error.reason}") from None


def read_file(path: Path) -> list[Setting]:
    """The settings of a YAML file, each with its line. Raises `ConfigError` for anything that is not a setting."""
    content = read_text(path, "configuration file", MAX_YAML_BYTES)
    try:
        root = compose(content)
        return list(_settings(root, path)) if root is not None else []
    except YamlError as error:
        raise ConfigError(f"{path.name}:{error.line}: {error.reason}") from None


def _settings(root: yaml.Node, path: Path) -> Iterator[Setting]:
    for section, section_place, section_node in _entries(root, path, "the file"):
        _check_section(section, section_place)
        if value_of(section_node) is None:
            continue
        for key, place, node in _entries(section_node, path, f'section "{section}"'):
            yield Setting(section, key, value_of(node), place)


def _entries(node: yaml.Node, path: Path, what: str) -> Iterator[tuple[str, str, yaml.Node]]:
    """(key, place, value node) of a mapping."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_place(path, node)}: {what} must consist of `key: value` lines")
    for key, key_node, value_node in entries(node):
        yield key, _place(path, key_node), value_node


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path.name}:{line_of(node)}"
