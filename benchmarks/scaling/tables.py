"""What was simulated and measured, as tables for people."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from pagedvid.capacity.simulation_result import Simulation
from pagedvid.cluster.worker_actor import WAIT_SECONDS
from scaling.limits import Resource, UnitCosts, first_full, num_services

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""(Headers, rows)."""
LIMITS_HEADERS = ("design", "resource", "a stream", "full with", "GPUs", "at the peak")
DAY_HEADERS = ("what", "simulated")
COSTS_HEADERS = ("measured", "each", "cost")


def day_rows(arguments: argparse.Namespace, streams_each: int, result: Simulation) -> list[tuple[str, str]]:
    """The simulation, for people."""
    return [
        ("GPUs", f"{arguments.gpus:,}"),
        ("sessions in a day", f"{result.num_streams:,}"),
        (f"streams that a GPU keeps up with, at {arguments.tokens_per_second} tokens/s", str(streams_each)),
        ("at the same time, at most", f"{result.peak_streams:,} of {arguments.gpus * streams_each:,}"),
        ("that waited", f"{result.num_queued:,}, p99 of all {result.waits.p99:.0f} s"),
        ("pages reserved, at most", f"{result.peak_pages_ratio:.1%}"),
    ]


def cost_rows(costs: UnitCosts, num_replicas: int) -> list[tuple[str, str, str]]:
    """The unit costs, for people."""
    idle_us = num_replicas * costs.call_us / WAIT_SECONDS
    return [
        ("encoding (H.264)", "chunk", f"{costs.encode_us:,.0f} us"),
        ("appending to the video, with flush", "chunk", f"{costs.append_us:,.0f} us"),
        ("row in SQLite, with flush", "chunk", f"{costs.row_us:,.0f} us"),
        ("other Python of the service", "chunk", f"{costs.bookkeeping_us:,.0f} us"),
        ("looking after a live session", "second", f"{costs.watching_us:,.0f} us"),
        ("Replicas, recorder's queue", "event", f"{costs.hear_us:.1f} us, {costs.queue_us:.1f} us"),
        ("Replicas: placing, numbers of all", "session", f"{costs.place_us:,.0f} us, {costs.stats_us:,.0f} us"),
        ("Ray, nothing to tell", "call", f"{costs.call_us:,.0f} us"),
        (f"Ray, {num_replicas:,} idle replicas", "second", f"{idle_us:,.0f} us"),
        ("Ray, with a fragment", "call", f"{costs.call_with_fragment_us:,.0f} us"),
        ("Ray, with frames", "call", f"{costs.call_with_frames_us:,.0f} us"),
        ("HTTP: looking for news, sending", "viewer", f"{costs.look_us:,.0f} us, {costs.megabyte_us:,.0f} us/MB"),
        ("frames, encoded", "chunk", f"{costs.frames_bytes / 1e6:.2f} MB, {costs.fragment_bytes / 1e6:.2f} MB"),
        ("object store, two processes", "second", f"{costs.store_bytes_per_second / 1e6:,.0f} MB"),
    ]


def limit_rows(found: Mapping[str, list[Resource]], streams_each: int, peak: int) -> list[tuple[str, ...]]:
    """Every resource of every design; the first one that is full is marked."""
    rows: list[tuple[str, ...]] = []
    for design, resources in found.items():
        for resource in resources:
            if not resource.per_stream:
                continue
            is_first = resource is first_full(resources)
            network = "network" in resource.name
            unit = f"{resource.per_stream / 1e6:.2f} MB/s" if network else f"{resource.per_stream / 1e3:.2f} ms/s"
            full = f"{resource.streams:,.0f}" if resource.streams >= 10 else f"{resource.streams:.1f}"
            gpus = f"{resource.streams / streams_each:,.1f}"
            mark = " (first)" if is_first else ""
            rows.append((design, resource.name, unit, f"{full}{mark}", gpus, f"{resource.load(peak):,.1f} x"))
    return rows


def advice(found: Mapping[str, list[Resource]], peak: int) -> list[str]:
    """How many services the peak wants, by design."""
    lines = []
    for design, resources in found.items():
        first = first_full(resources)
        lines.append(
            f"{design}: {first.name} is full first, with {first.streams:,.1f} streams; "
            f"{num_services(resources, peak):,} services for {peak:,}"
        )
    return lines
