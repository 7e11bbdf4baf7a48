"""Tables of benchmarks in pages of Markdown, between markers, so that a program can bring them up to date."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def markers(name: str) -> tuple[str, str]:
    """The lines before and after a table."""
    return f"<!-- {name} table: begin -->", f"<!-- {name} table: end -->"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [headers, ["---", *("---:" for _ in headers[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_table(path: Path, name: str, table: str) -> None:
    """Puts the table between the markers of a file. Raises ValueError unless both are there once."""
    begin, end = markers(name)
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} needs the lines {begin} and {end}, once each")
    before, _, rest = text.partition(begin)
    path.write_text(f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
