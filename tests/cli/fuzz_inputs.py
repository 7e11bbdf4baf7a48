"""Wrong command lines and files as people write them: valid ones, changed in structure and in bytes.

Flags come from the parser and settings from the configuration, so new ones are tried without a change here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pagedvid.cli.main import build_parser
from pagedvid.config.sections import SECTIONS, Config, frame_settings
from pagedvid.models.build import resolve
from tests.cli.fuzz_words import JSON_TEXTS, LONG, json_values, nasty_words


@dataclass
class Case:
    """One run of the command line."""

    argv: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    """Files that differ from `valid_files`."""


def valid_files(models: Path) -> dict[str, bytes]:
    """Every file that a command line can name, by path; `models` is the folder of shipped cards."""
    config = "".join(
        f"{name}:\n"
        + "".join(f"  {key}: {_yaml(getattr(Config(), name).written_field(key))}\n" for key in section.field_names())
        for name, section in SECTIONS.items()
    )
    prompts = [{"prompt": "a red circle"}, {"prompt": "blue", "id": "sky", "seed": 3, "num_frames": 5, "inputs": {}}]
    settings = frame_settings(resolve(Config()).config)
    done = [
        {"id": "000-a-red-circle", "status": "done", "prompt": "a red circle", "seed": 0, "num_frames": 48},
        {"id": "sky", "status": "done", "prompt": "blue", "seed": 3, "num_frames": 5, "error": None, "details": {}},
    ]
    trace = [
        {"start_seconds": 9.5, "length_seconds": 60, "resolution": "832x480", "num_branches": 1},
        {"start_seconds": 0, "length_seconds": 1},
    ]
    return {
        "config.yaml": config.encode(),
        "prompts.txt": b"a red circle\n# a comment\n\nein blaues Quadrat\n",
        "prompts.jsonl": _lines(prompts),
        "trace.jsonl": _lines(trace),
        "cards/own.yaml": (models / "self-forcing.yaml").read_bytes(),
        "out/manifest.jsonl": _lines([{**fields, "settings": settings} for fields in done]),
        "out/000-a-red-circle.mp4": b"a video",
        "out/sky.mp4": b"a video",
        "latents.safetensors": b"latents",
        "vae/config.json": b"{}",
        "key": b"0123456789abcdef\n",
    }


def _yaml(value: object) -> str:
    return "null" if value is None else json.dumps(value)


def _lines(objects: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(fields) + "\n" for fields in objects).encode()


VALID_VALUES = {
    "prompts": ("prompts.txt", "prompts.jsonl"),
    "out": ("out", "new"),
    "config": ("config.yaml",),
    "model": ("demo", "self-forcing", "magi-1-4.5b", "cards/own.yaml", "demo"),
    "models": ("cards",),
    "weights": ("bf16", "none", "fp8", "cards"),
    "kv": ("int2", "klt2", "int4/int2", "int2,bf16"),
    "memory": ("80GiB", "24MiB", "1", "1024TiB"),
    "concurrent": ("2", "auto", "1000000"),
    "frames": ("1", "48", "2000"),
    "seed": ("0", "9223372036854775807"),
    "assignments": ("cache.codec=int4", "engine.concurrent=3", "generate.threads=1"),
    "resolution": ("832x480", "16x16", "65536x65536"),
    "gpu": ("h100",),
    "reserve": ("1GiB", "0", "1024TiB"),
    "window": ("1+6", "18frames", "4.5s", "1000000000+1000000000", "1000000000frames"),
    "branches": ("2", "16"),
    "targets": ("streams=3", "seconds=9", "streams=1000000000", "seconds=10000000"),
    "scale": ("0.5",),
    "device": ("cpu",),
    "trace": ("trace.jsonl",),
    "gpus": ("2", "10000"),
    "max_wait": ("30", "0", "1000000000"),
    "head_dim": ("128", "96"),
    "latents": ("latents.safetensors",),
    "vae": ("vae",),
    "plot": ("none/x.png", "x.txt"),
    "data": ("data", "out"),
    "host": ("127.0.0.1", "localhost"),
    "port": ("0",),
    "api_key_file": ("key",),
    "stop_seconds": ("20", "0.5"),
}


@dataclass(frozen=True)
class Command:
    """A subcommand and the actions of its parser."""

    words: tuple[str, ...]
    actions: tuple[argparse.Action, ...]


def commands() -> tuple[Command, ...]:
    """All subcommands."""
    return tuple(_commands(build_parser(), ()))


def _commands(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[Command]:
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in nested:
        for name, inner in action.choices.items():
            yield from _commands(inner, (*words, name))
    if not nested:
        yield Command(words, tuple(parser._actions))


COMMANDS = commands()


@st.composite
def flag_words(draw: st.DrawFn, action: argparse.Action, *, is_nasty: bool) -> list[str]:
    """One use of a flag (or of a positional argument)."""
    names = list(action.option_strings)
    if action.nargs == 0:
        return [draw(st.sampled_from(names))]
    valid = st.sampled_from(tuple(action.choices or VALID_VALUES.get(action.dest, ("1",))))
    value = draw(nasty_words if is_nasty else valid)
    if not names:
        return [value]
    name = draw(st.sampled_from(names))
    if is_nasty and draw(st.booleans()):
        name = name[: draw(st.integers(3, len(name)))]
    return [f"{name}={value}"] if draw(st.booleans()) else [name, value]


@st.composite
def command_lines(draw: st.DrawFn) -> Case:
    """A subcommand with some of its flags: some values wrong, flags repeated, cut short, left out."""
    command = draw(st.sampled_from(COMMANDS))
    needed = [action for action in command.actions if action.required]
    # Proofs and drawings are real work; help is argparse's own.
    optional = [action for action in command.actions if not action.required and action.dest != "help"]
    chosen = [action for action in needed if draw(st.integers(0, 9))]
    chosen += draw(st.lists(st.sampled_from(optional), max_size=4)) if optional else []
    argv = list(command.words)
    for action in draw(st.permutations(chosen)):
        argv += draw(flag_words(action, is_nasty=draw(st.integers(0, 3)) == 0))
    if draw(st.integers(0, 9)) == 0:
        argv.insert(draw(st.integers(0, len(argv))), draw(nasty_words))
    return Case(argv)


@st.composite
def assignments(draw: st.DrawFn) -> Case:
    """`--set` of every key, and of words that are not keys."""
    keys = [f"{name}.{key}" for name, section in SECTIONS.items() for key in section.field_names()]
    argv = ["config", "show"] if draw(st.booleans()) else ["generate", "--prompts", "prompts.txt", "--plan"]
    for _ in range(draw(st.integers(1, 2))):
        target = draw(st.sampled_from(keys)) if draw(st.integers(0, 9)) else draw(nasty_words)
        argv += ["--set", f"{target}={draw(nasty_words)}"]
    return Case(argv)


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a few places cut, doubled, overwritten or encoded differently."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 12)))
        piece = draw(
            st.one_of(
                st.binary(max_size=4),
                st.just(content[start:stop] * 2),
                st.sampled_from(
                    (
                        "\0",
                        "\ufeff",
                        "\u2028",
                        "\r",
                        "\t",
                        "\x1b",
                        "[",
                        "{",
                        '"',
                        ":",
                        "- ",
                        "\n",
                        "&a ",
                        "*a",
                        "!!set ",
                    )
                ).map(str.encode),
                st.sampled_from((b"\xed\xa0\xbd", b"\xff\xfe", b"\x80", b"[" * LONG, b"9" * LONG)),
            )
        )
        content = content[:start] + piece + content[stop:]
    if draw(st.integers(0, 19)) == 0:
        content = content.decode("utf-8", "replace").encode(draw(st.sampled_from(("utf-16", "utf-8-sig", "utf-32"))))
    return content


@st.composite
def changed_yaml(draw: st.DrawFn, content: bytes) -> bytes:
    """The value or key of one line replaced, doubled or indented."""
    lines = content.decode().splitlines()
    for _ in range(draw(st.integers(1, 2))):
        number = draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[number].partition(":")
        change = draw(st.integers(0, 4))
        if change < 3:
            lines[number] = f"{key}{colon} {draw(nasty_words)}"
        elif change == 3:
            lines[number] = f"{draw(nasty_words)}: 1"
        else:
            lines.insert(
                draw(st.integers(0, len(lines))), draw(st.sampled_from((lines[number], " " + lines[number], "- a")))
            )
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@st.composite
def changed_jsonl(draw: st.DrawFn, content: bytes) -> bytes:
    """One field replaced by any value, removed or added, or one line by any text."""
    lines = content.decode().splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    fields = json.loads(lines[number])
    name = draw(st.sampled_from((*fields, "zzz", "inputs", "id", "")))
    change = draw(st.integers(0, 4))
    if change < 2:
        lines[number] = json.dumps({**fields, name: draw(json_values)})
    elif change == 2:
        raw = json.dumps({**fields, name: "@"}).replace('"@"', draw(st.sampled_from(JSON_TEXTS)))
        lines[number] = raw
    elif change == 3:
        lines[number] = json.dumps({key: value for key, value in fields.items() if key != name})
    else:
        lines[number] = draw(st.sampled_from(JSON_TEXTS) | nasty_words)
    return "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")


READERS = {
    "config.yaml": (["config", "show", "--config", "config.yaml"],),
    "prompts.txt": (["generate", "--plan", "--prompts", "prompts.txt"],),
    "prompts.jsonl": (
        ["generate", "--plan", "--prompts", "prompts.jsonl"],
        ["calibrate", "--out", "x", "--prompts", "prompts.jsonl"],
        ["profile", "--out", "x", "--prompts", "prompts.jsonl", "--ladder", "int", "--profile-videos", "4"],
    ),
    "out/manifest.jsonl": (["generate", "--resume", "--out", "out", "--prompts", "prompts.jsonl"],),
    "trace.jsonl": (["capacity", "--model", "cards/own.yaml", "--kv", "int2", "--trace", "trace.jsonl"],),
    "cards/own.yaml": (["models", "--models", "cards"], ["capacity", "--model", "cards/own.yaml", "--kv", "int2"]),
}
"""The command lines that read a file."""


@st.composite
def file_changes(draw: st.DrawFn, name: str, files: dict[str, bytes]) -> Case:
    """A file that somebody changed, and a command that reads it."""
    changes = [changed_bytes(files[name])]
    if name.endswith(".yaml"):
        changes.append(changed_yaml(files[name]))
    if name.endswith(".jsonl"):
        changes.append(changed_jsonl(files[name]))
    return Case(list(draw(st.sampled_from(READERS[name]))), {name: draw(st.one_of(changes))})
