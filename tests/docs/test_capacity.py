"""docs/capacity.md: its table is the one that benchmarks/capacity.py makes."""

from __future__ import annotations

import shutil
import subprocess
import sys

from tests.docs.pages import DOCS, ROOT


def test_the_table_is_up_to_date(tmp_path):
    page = tmp_path / "capacity.md"
    shutil.copy(DOCS / "capacity.md", page)
    command = [sys.executable, str(ROOT / "benchmarks" / "capacity.py"), "--readme", str(page)]
    subprocess.run([*command, "--out", str(tmp_path / "capacity.json")], check=True, capture_output=True)
    assert page.read_text(encoding="utf-8") == (DOCS / "capacity.md").read_text(encoding="utf-8")
