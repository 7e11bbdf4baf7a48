"""Where settings come from: defaults < YAML file < command line flags < `--set section.key=value`.

Every value keeps its source, so that an error can name the line to change and `pagedvid config show` can print it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml

from pagedvid.config import SECTIONS, Config
from pagedvid.errors import ConfigError


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
    """The settings in force and where each of them came from."""

    config: Config
    sources: dict[str, str]
    """Source by "section.key"; "default" where nobody wrote a value."""


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are booleans: in plain YAML 1.1 `correction: off` would read as false."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool") or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_config(path: str | Path) -> Config:
    """The settings of a YAML file over the defaults. Raises `ConfigError`."""
    return resolve(read_file(Path(path))).config


def resolve(settings: Iterable[Setting]) -> ResolvedConfig:
    """Settings over the defaults; of two values for one key the later wins. Raises `ConfigError`."""
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
        raise ConfigError(f"{source}: unknown section {_unknown(section, tuple(SECTIONS))}")


def _check_key(setting: Setting) -> None:
    known = SECTIONS[setting.section].field_names()
    if setting.key not in known:
        raise ConfigError(f"{setting.source}: unknown key {_unknown(setting.key, known, setting.section + '.')}")


def _unknown(given: str, known: tuple[str, ...], prefix: str = "") -> str:
    close = get_close_matches(given, known, n=1)
    hint = f' - did you mean "{prefix}{close[0]}"?' if close else ""
    return f'"{prefix}{given}"{hint} (known: {", ".join(known)})'


def read_assignment(assignment: str) -> Setting:
    """The setting of `--set section.key=value`; the value is read as in the YAML file. Raises `ConfigError`."""
    target, equals, value = assignment.partition("=")
    section, dot, key = target.strip().partition(".")
    if not (equals and dot):
        raise ConfigError(f"--set {assignment}: write it as section.key=value, such as cache.codec=int4")
    return Setting(section, key, read_scalar(value), "--set")


def read_scalar(written: str) -> object:
    """A single value as YAML reads it: "4" -> 4, "null" -> None, "off" -> "off". Raises `ConfigError`."""
    try:
        return yaml.load(written, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{written!r} cannot be read as a value: {_reason(error)}") from None


def read_file(path: Path) -> list[Setting]:
    """The settings of a YAML file, each with its line. Raises `ConfigError` for anything that is not a setting."""
    written = _read_text(path)
    try:
        loader = _Loader(written)
        root = loader.get_single_node()
        return list(_settings(loader, root, path)) if root is not None else []
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_reason(error)}") from None


def _settings(loader: _Loader, root: yaml.Node, path: Path) -> Iterator[Setting]:
    for section, section_place, section_node in _entries(root, path, "the file"):
        _check_section(section, section_place)
        if section_node.tag.endswith(":null"):
            continue
        for key, place, node in _entries(section_node, path, f'section "{section}"'):
            yield Setting(section, key, loader.construct_object(node, deep=True), place)


def _entries(node: yaml.Node, path: Path, what: str) -> Iterator[tuple[str, str, yaml.Node]]:
    """(key, place, value node) of a mapping; a key written twice is an error, because one would be ignored."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_place(path, node)}: {what} must hold `key: value` lines")
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key, place = str(key_node.value), _place(path, key_node)
        if key in seen:
            raise ConfigError(f'{place}: "{key}" is written twice; remove one of them')
        seen.add(key)
        yield key, place, value_node


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path.name}:{node.start_mark.line + 1}"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from None


def _reason(error: yaml.YAMLError) -> str:
    """The parser's message in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())
