"""`pagedvid config show`: every setting, its value, and where the value comes from."""

from __future__ import annotations

import argparse
import json
from typing import Any

import yaml

from pagedvid.cli.bits_words import bits_lines
from pagedvid.cli.options import add_config_options, resolve_options
from pagedvid.config.file import ResolvedConfig
from pagedvid.config.sections import SECTIONS
from pagedvid.files.plain_yaml import read_scalar

MAX_WIDTH = 40
"""Most characters of a column; a longer value widens its own line only."""


def add_parser(subparsers: Any) -> None:
    """Adds `config show`."""
    config = subparsers.add_parser("config", help="show the settings in force", description="Settings of pagedvid.")
    commands = config.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = commands.add_parser("show", help="every setting with its source", description=__doc__)
    add_config_options(show)
    show.add_argument("--format", choices=("table", "json", "yaml"), default="table", help="default: table")
    show.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the settings that the other options result in."""
    resolved = resolve_options(args)
    writers = {"table": _table, "json": _json, "yaml": _yaml}
    print(writers[args.format](resolved))
    if args.format == "table" and resolved.config.cache.bits is not None:
        from pagedvid.models.build import resolve

        print("", *bits_lines(resolve(resolved.config)), sep="\n")
    return 0


def _rows(resolved: ResolvedConfig) -> list[tuple[str, object, str]]:
    """(section.key, value, source) of every setting."""
    return [
        (f"{name}.{key}", getattr(resolved.config, name).written_field(key), resolved.sources[f"{name}.{key}"])
        for name, section in SECTIONS.items()
        for key in section.field_names()
    ]


def _table(resolved: ResolvedConfig) -> str:
    rows = [("setting", "value", "source"), *((key, _plain(value), source) for key, value, source in _rows(resolved))]
    key_width, value_width = (min(MAX_WIDTH, max(len(row[column]) for row in rows)) for column in (0, 1))
    return "\n".join(f"{key:{key_width}}  {value:{value_width}}  {source}".rstrip() for key, value, source in rows)


def _json(resolved: ResolvedConfig) -> str:
    return json.dumps({key: {"value": value, "source": source} for key, value, source in _rows(resolved)}, indent=2)


def _yaml(resolved: ResolvedConfig) -> str:
    """A file that `--config` reads back; the sources are comments."""
    lines: list[str] = []
    for target, value, source in _rows(resolved):
        section, _, key = target.partition(".")
        if f"{section}:" not in lines:
            lines.append(f"{section}:")
        lines.append(f"{f'  {key}: {_word(value)}':32} # {source}")
    return "\n".join(lines)


def _plain(value: object) -> str:
    """A value as people write it; characters that a terminal would obey instead of showing are escaped as in YAML."""
    return value if isinstance(value, str) and value.isprintable() else _word(value)


def _word(value: object) -> str:
    """A value in YAML, quoted where `read_scalar` would otherwise read a word as something else."""
    word = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and read_scalar(word) != value else word
