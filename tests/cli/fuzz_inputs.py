"""Command lines and files as people get them wrong: valid ones, changed in structure and in bytes.

Flags are read off the parser, settings off the configuration, so that new ones are tried without a word here.
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
from pagedvid.config import SECTIONS, Config, frame_settings

LONG = 5000
NUMBERS = (
    *(
        "0",
        "1",
        "-1",
        "+5",
        " 5 ",
        "3.5",
        "1e3",
        "1e400",
        "-1e400",
        "1e-320",
        "nan",
        ".nan",
        "inf",
        "-.inf",
        "1_000",
        "010",
    ),
    *(
        "0x10",
        "0b1",
        "1:30",
        "1,5",
        "\u0663",
        "²",
        "9223372036854775807",
        "9223372036854775808",
        "1000000000000",
        "9" * 400,
    ),
    *("9" * LONG, "0." + "3" * LONG, "1e" + "9" * LONG, "-" * LONG),
)
WORDS = (
    *(
        "",
        " ",
        "-",
        "--",
        "=",
        ",",
        "a",
        "auto",
        "null",
        "~",
        "true",
        "off",
        "%s %(prog)s",
        "{}",
        "[]",
        "{a: b}",
        "[1, 2]",
    ),
    *(
        "int2",
        "int4/int2",
        "klt2",
        "klt1.5/klt3",
        "klt\u0662",
        "klt2\n",
        "klt" + "1" * LONG,
        "int2/" * 40,
        "{0-1: int8, 5: int2}",
    ),
    *(
        "{0-1: int8, 0-1: int4}",
        "{\u0660: int8}",
        "{1000000000000: int8}",
        "{[1]: 2}",
        "{1: 1, 01: 2}",
        "cuda",
        "cuda:0",
        "cuda:\u0663",
    ),
    *("foo", "meta", "cuda:" + "9" * LONG, "1+6", "0+1000000000", "18frames", "1000000000frames", "4.5s", "0.0s"),
    *(
        "832x480",
        "65536x65536",
        "8x8",
        "9" * LONG + "x16",
        "x",
        "80GiB",
        "1EiB",
        "1 gib",
        "9" * 25 + "TiB",
        "-5GiB",
        "1.5",
    ),
    *("9" * 400 + "GiB", "streams=4", "seconds=9", "streams=" + "9" * LONG, "seconds=\u0663", "=", "streams"),
    *(
        "!!int x",
        "!!python/object:os.system x",
        "&a [*a]",
        "*a",
        "<<: {a: 1}",
        "2024-13-01",
        "2024-01-01",
        "? a",
        "a: b: c",
    ),
    *(
        "[" * LONG,
        "{" * LONG,
        "- " * LONG,
        "'",
        '"\\0"',
        '"\\ud83d"',
        "|",
        ">",
        "%YAML 9.9",
        "--- 1\n--- 2",
        "# a",
        "a\tb",
        "\t",
    ),
    *(
        "\0",
        "\ud83d",
        "\x1b[31mred\x1b[0m",
        "\u202etxt.exe",
        "\u2028",
        "\x85",
        "\ufeff",
        "é" * LONG,
        "a" * LONG,
        "a " * LONG,
    ),
    *(".", "..", "/", "/dev/null", "/dev/zero", "/dev/stdin", "/dev/full", "/proc/self/mem", "a/" * LONG, "a" * 256),
    *("none.yaml", "none.txt", "none.jsonl", "demo.yaml/x", "~root", "$HOME"),
)
"""What a person, a script with an empty variable, or an attacker writes where a value belongs."""
JSON_TEXTS = (
    *(
        "1e400",
        "NaN",
        "-Infinity",
        "9" * LONG,
        "-" + "9" * 30,
        "[" * LONG,
        '{"a":' * LONG,
        '"\\ud83d"',
        '"\\u0000"',
        '"\\u001b[31m"',
    ),
    *(
        '{"a": 1, "a": 2}',
        "tru",
        "'a'",
        "",
        '"\\u202e"',
        '"' + "a" * LONG + '"',
        "[1,]",
        "0x10",
        "01",
        "1.",
        "{}",
        "[]",
    ),
)

nasty_words = st.one_of(
    st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(max_size=8), st.integers().map(str), st.floats().map(str)
)
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from(WORDS),
        st.sampled_from(NUMBERS),
    ),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=6,
)


@dataclass
class Case:
    """One run of the command line."""

    argv: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    """Files that differ from `valid_files`."""


def valid_files(models: Path) -> dict[str, bytes]:
    """Whatever a command line can name, by path; `models` is the folder of shipped cards."""
    config = "".join(
        f"{name}:\n"
        + "".join(f"  {key}: {_yaml(getattr(Config(), name).written_field(key))}\n" for key in section.field_names())
        for name, section in SECTIONS.items()
    )
    prompts = [{"prompt": "a red circle"}, {"prompt": "blue", "id": "sky", "seed": 3, "num_frames": 5, "inputs": {}}]
    entry = {
        **{"id": "sky", "status": "done", "prompt": "blue", "seed": 3, "num_frames": 5, "inputs": {}},
        **{"settings": frame_settings(Config()), "error": None, "details": {"file": "sky.mp4"}},
    }
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
        "out/manifest.jsonl": _lines([entry]),
        "out/sky.mp4": b"a video",
        "latents.safetensors": b"latents",
        "vae/config.json": b"{}",
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
    "memory": ("80GiB", "24MiB"),
    "concurrent": ("2", "auto"),
    "frames": ("1", "48"),
    "seed": ("0", "7"),
    "assignments": ("cache.codec=int4", "engine.concurrent=3", "generate.threads=1"),
    "resolution": ("832x480",),
    "gpu": ("h100",),
    "reserve": ("1GiB", "0"),
    "window": ("1+6", "18frames", "4.5s"),
    "branches": ("2",),
    "targets": ("streams=3", "seconds=9"),
    "scale": ("0.5",),
    "device": ("cpu",),
    "trace": ("trace.jsonl",),
    "gpus": ("2",),
    "max_wait": ("30",),
    "head_dim": ("128", "96"),
    "latents": ("latents.safetensors",),
    "vae": ("vae",),
    "plot": ("none/x.png", "x.txt"),
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
    """`--set` of every key, and what is no key."""
    keys = [f"{name}.{key}" for name, section in SECTIONS.items() for key in section.field_names()]
    argv = ["config", "show"] if draw(st.booleans()) else ["generate", "--prompts", "prompts.txt", "--plan"]
    for _ in range(draw(st.integers(1, 2))):
        target = draw(st.sampled_from(keys)) if draw(st.integers(0, 9)) else draw(nasty_words)
        argv += ["--set", f"{target}={draw(nasty_words)}"]
    return Case(argv)


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a few places cut, doubled, overwritten or encoded otherwise."""
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
    """One line's value or key replaced, doubled, or moved in."""
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
    ),
    "out/manifest.jsonl": (["generate", "--resume", "--out", "out", "--prompts", "prompts.jsonl"],),
    "trace.jsonl": (["capacity", "--model", "self-forcing", "--kv", "int2", "--trace", "trace.jsonl"],),
    "cards/own.yaml": (["models", "--models", "cards"], ["capacity", "--model", "cards/own.yaml"]),
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
