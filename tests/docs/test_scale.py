"""docs/scale.md: its tables are those of the results, and its worked example is that of the capacity tool."""

from __future__ import annotations

import argparse
import json
import math
import re
from types import SimpleNamespace

import cluster
from lib.pages import markdown, markers
from pagedvid.capacity.card_files import find_card
from pagedvid.capacity.gpus import gpu_memory
from pagedvid.capacity.sizing import Question
from pagedvid.capacity.sustain import parse_rate, sustained
from scaling import tables as scaling_tables
from scaling.limits import Resource, UnitCosts
from tests.docs.pages import DOCS, ROOT, tables

PAGE = (DOCS / "scale.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
RESULTS = ROOT / "benchmarks" / "results"


def table(name: str) -> str:
    begin, end = markers(name)
    return PAGE.partition(f"{begin}\n")[2].partition(f"\n{end}")[0]


def test_tables_are_those_of_the_result():
    report = json.loads((RESULTS / "scale.json").read_text())
    arguments, results = argparse.Namespace(**report["settings"]), report["results"]
    simulated = results["simulated"]
    day = SimpleNamespace(**{**simulated, "waits": SimpleNamespace(**simulated["waits"])})
    found = {
        design: [Resource(it["name"], it["per_stream"], it["limit"]) for it in one["resources"]]
        for design, one in results["designs"].items()
    }
    streams_each, costs = simulated["streams_of_a_gpu"], UnitCosts(**results["measured"])
    assert table("day") == markdown(scaling_tables.DAY_HEADERS, scaling_tables.day_rows(arguments, streams_each, day))
    assert table("costs") == markdown(scaling_tables.COSTS_HEADERS, scaling_tables.cost_rows(costs, arguments.gpus))
    rows = scaling_tables.limit_rows(found, streams_each, day.peak_streams)
    assert table("limits") == markdown(scaling_tables.LIMITS_HEADERS, rows)
    assert f"which is {2**28 // costs.frames_bytes} chunks" in TEXT


def test_the_efficiency_is_the_measured_one_or_none():
    result = RESULTS / "cluster.json"
    measured = "Not measured yet."
    if result.exists():
        measured = markdown(cluster.HEADERS, cluster.cells(json.loads(result.read_text())["results"]["rows"]))
    assert table("cluster") == measured


def test_the_worked_example():
    card = find_card("self-forcing", None)
    question = Question(card, card.resolution, card.window, gpu_memory("h100"), "bf16")
    found = sustained(question, 16.0, parse_rate("150000"))
    assert f"takes **{found.stream_share:.3f}** of the device" in TEXT
    assert f"keeps up with {found.num_streams} of them" in TEXT
    each = 60 * found.stream_share
    workers = 100_000 * each / (86_400 * 0.9)
    assert f"100,000 x {each:.2f} s / (86,400 s x 0.9) = {workers:.2f}, so **{math.ceil(workers)} workers**" in TEXT
    row = next(it for it in tables(DOCS / "capacity.md") if "self-forcing" in it)["self-forcing"]
    assert re.search(rf"are {row['bf16']} in BF16 and {row['int2']} in int2", TEXT)
