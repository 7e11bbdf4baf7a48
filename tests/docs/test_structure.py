"""docs/structure.md: its rooms are those of the package, in the order of imports, and every file it names exists."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS, ROOT
from tests.test_import_layers import ROOMS

PAGE = (DOCS / "structure.md").read_text(encoding="utf-8")


def test_rooms_in_the_order_of_imports():
    (listing,) = re.findall(r"^pagedvid/\n((?:  .*\n)+)", PAGE, re.MULTILINE)
    listed = re.findall(r"^  (\w+)/ ", listing, re.MULTILINE)
    folders = [name.removeprefix("pagedvid.") for room in ROOMS for name in room if name.startswith("pagedvid.")]
    assert listed == [name for name in folders if (ROOT / "pagedvid" / name).is_dir()]


def test_entries_for_new_things_exist():
    entries = re.findall(r"`(\w+)` in `([\w/]+\.py)`", PAGE)
    assert len(entries) >= 4
    for name, path in entries:
        assert re.search(rf"^{name}\b", (ROOT / "pagedvid" / path).read_text(encoding="utf-8"), re.MULTILINE), name


def test_files_exist():
    paths = set(re.findall(r"\b((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.py)?)", PAGE))
    assert len(paths) > 20
    package = ROOT / "pagedvid"
    for path in paths:
        assert any((folder / path).exists() for folder in (ROOT, package, *package.iterdir())), path
