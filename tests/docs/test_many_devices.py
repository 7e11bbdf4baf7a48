"""docs/many_devices.md: the host runs as shown, and its formulas are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys

from pagedvid.distributed.exchange import sent_bytes_of_split, sent_bytes_of_whole
from tests.docs.pages import DOCS, code_blocks

PAGE = DOCS / "many_devices.md"


def test_the_host_runs_on_two_ranks(tmp_path):
    (code,) = (block for block in code_blocks(PAGE, "python") if "split_tokens" in block)
    (tmp_path / "host.py").write_text(code)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "host.py")]
    run = subprocess.run(launcher, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    told = dict(re.findall(r"rank (\d): (.*)", run.stdout))
    sent_bytes = 8 * sent_bytes_of_split(75, 2, 8, 4, 32, 4)
    pages = re.findall(r"tokens, (\d+) pages", run.stdout)
    assert told == {
        "0": f"38 tokens, {pages[0]} pages, {sent_bytes} bytes sent",
        "1": f"37 tokens, {pages[1]} pages, {sent_bytes} bytes sent",
    }
    assert pages[0] == pages[1] != "0"


def test_the_example_on_the_wire():
    assert "36 MB a layer" in PAGE.read_text(encoding="utf-8")
    assert round(sent_bytes_of_whole(4680, 4, 40, 128, 2) / 1e6) == 36
