"""Every command that a page names can be typed as it is written: programs, subcommands and flags exist."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pagedvid.cli.main import build_parser
from tests.docs.pages import PAGES, ROOT, code_blocks, name_of, prose

PROGRAMS = ("pagedvid", "python", "bash")


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of ours; comments and other programs are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True) if command.strip().startswith(PROGRAMS) else []
            if words and words[0] in PROGRAMS:
                yield words


def shell_commands(page: Path) -> list[list[str]]:
    """Those in fenced blocks, and indented ones."""
    indented = "\n".join(re.findall(r"^    (pagedvid .*)$", prose(page), re.MULTILINE))
    return [words for block in (*code_blocks(page, "bash"), indented) for words in commands(block)]


def named_commands(page: Path) -> list[list[str]]:
    """Those in the running text, which may leave out what is needed besides."""
    return [words for code in re.findall(r"`([^`]+)`", prose(page)) for words in commands(code.replace("\n", " "))]


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    """Programs put their folders on Python's path."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), str(ROOT / "tools"), *sys.path])
    help_of.cache_clear()


@cache
def help_of(program: str) -> str:
    """What a program of ours prints on --help."""
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(sys, "argv", [program, "--help"])
        patched.setattr("argparse.ArgumentParser._print_message", lambda _, text, file=None: printed.append(text))
        runpy.run_path(str(ROOT / program), run_name="__main__")
    return "".join(printed)


def check_flags(words: list[str], known: str) -> None:
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", known), f"{flag} of {shlex.join(words)}"


def check_script(words: list[str]) -> None:
    """`bash FILE`, `python FILE --flags` and `python -m pytest PATH`."""
    arguments = words[1:]
    if arguments[:2] == ["-m", "pytest"]:
        assert all((ROOT / path).exists() for path in arguments[2:] if not path.startswith("-")), words
        return
    assert (ROOT / arguments[0]).exists(), words
    if words[0] == "python" and len(arguments) > 1:
        check_flags(arguments, help_of(arguments[0]))


def test_there_are_commands():
    assert sum(len(shell_commands(page)) for page in PAGES) > 20
    assert sum(len(named_commands(page)) for page in PAGES) > 15


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_blocks_can_be_typed(page, capsys):
    for words in shell_commands(page):
        if words[0] != "pagedvid":
            check_script(words)
            continue
        try:
            build_parser().parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_the_text_exist(page, capsys):
    for words in named_commands(page):
        if len(words) == 1:
            continue
        if words[0] != "pagedvid":
            check_script(words)
        else:
            subcommand = [word for word in words[1:3] if word in ("config", "show")] or words[1:2]
            with pytest.raises(SystemExit) as ended:
                build_parser().parse_args([*subcommand, "--help"])
            assert ended.value.code == 0, words
            check_flags(words, capsys.readouterr().out)


def test_settings_of_the_text_exist():
    settings = (ROOT / "configs" / "default.yaml").read_text(encoding="utf-8")
    named = {
        match
        for page in PAGES
        for match in re.findall(r"\b(?:cache|engine|model|generate)\.[a-z_]+=", page.read_text())
    }
    assert len(named) > 5
    for setting in named:
        assert re.search(rf"^  {setting[:-1].partition('.')[2]}:", settings, re.MULTILINE), setting
