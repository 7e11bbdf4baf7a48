"""The README's code runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_embedding_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert "num_chunks=8" in capsys.readouterr().out


def test_opens_with_the_two_commands() -> None:
    commands = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert commands[:2] == ["bash tools/demo.sh\n", "bash .ci/run\n"]
