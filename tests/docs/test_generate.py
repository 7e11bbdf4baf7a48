"""docs/generate.md: its exit codes are those of the command line."""

from __future__ import annotations

from pagedvid.cli import terminal
from tests.docs.pages import DOCS, tables


def test_exit_codes():
    (table,) = tables(DOCS / "generate.md")
    codes = {value for name, value in vars(terminal).items() if name.startswith("EXIT_")}
    assert {int(code) for code in table} == codes
