"""Tables between the markers of a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.pages import markdown, markers, replace_table


def test_only_the_named_table_is_replaced(tmp_path: Path) -> None:
    page, (begin, end), others = tmp_path / "page.md", markers("a"), "\n".join(markers("b"))
    page.write_text(f"before\n{begin}\nold\n{end}\n{others}\nafter\n")
    replace_table(page, "a", markdown(("case", "ms"), [("one", "2")]))
    assert page.read_text() == f"before\n{begin}\n| case | ms |\n| --- | ---: |\n| one | 2 |\n{end}\n{others}\nafter\n"


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(ValueError, match="needs the lines"):
        replace_table(page, "a", "table")
    assert page.read_text() == "text"
