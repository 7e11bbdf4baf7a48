"""docs/many_devices.md: the host runs as shown, its formulas and calls are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys

from fastapi.routing import APIRoute

from pagedvid.distributed.exchange import sent_bytes_of_split, sent_bytes_of_whole
from pagedvid.service.http.replicas import ReplicaObject, router
from tests.docs.pages import DOCS, code_blocks, tables

PAGE = DOCS / "many_devices.md"


def test_the_host_runs_on_two_ranks(tmp_path):
    (code,) = (block for block in code_blocks(PAGE, "python") if "split_tokens" in block)
    (tmp_path / "host.py").write_text(code)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "host.py")]
    run = subprocess.run(launcher, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    told = dict(re.findall(r"rank (\d): (.*? sent)", run.stdout))  # the lines of two processes may run into one
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


def test_calls_of_replicas_are_those_of_the_service():
    (table,) = (table for table in tables(PAGE) if "`GET /v1/replicas`" in table)
    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    assert set(table) == {f"`{method} {route.path}`" for route in routes for method in route.methods}
    fields = set(re.findall(r"`(\w+)`", table["`GET /v1/replicas`"]["what it does"]))
    assert fields == set(ReplicaObject.model_fields) - {"number"}
