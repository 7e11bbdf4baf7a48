"""What the command line tests share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pagedvid.cli import generate
from pagedvid.cli.main import main
from tests.cli.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def restore_threads() -> Iterator[None]:
    """`generate.threads` is a setting of the whole process."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def engines(monkeypatch) -> list[FakeEngine]:
    """The fake engines that commands of this test have made, in order."""
    made: list[FakeEngine] = []

    def create(config, prompts) -> FakeEngine:
        made.append(FakeEngine())
        return made[-1]

    monkeypatch.setattr(generate, "create_engine", create)
    return made


@pytest.fixture
def prompts(tmp_path) -> Callable[..., Path]:
    """Writes a prompts file: prompts("red", "blue") or prompts({"prompt": "red", "id": "a"})."""

    def write(*lines: str | dict) -> Path:
        if all(isinstance(line, str) for line in lines):
            path = tmp_path / "prompts.txt"
            path.write_text("\n".join(lines) + "\n")
        else:
            path = tmp_path / "prompts.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


@pytest.fixture
def command(capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def run(*argv: object) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
