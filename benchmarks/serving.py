"""How well does `pagedvid serve` keep its viewers' videos playing: by policy, and by codec in the same memory?

Thirteen minutes on two cores. The real service with the demo model, on a loopback port, in a process of its own.
Clients come in an open loop, at times drawn from a Poisson process, whatever the service does. A viewer asks for a live
session, watches it over its WebSocket for --stay seconds, whatever it sees, and leaves; its video is as long as that.
Everything is measured at the client.

ratio     play ratio: share of a viewer's time in which it saw the video going on, that is, neither waited for the first
          chunk nor stood still for a later one (engine/playout.py); elsewhere Continuous Play Ratio. Mean over the
          viewers, and p10, which nine of ten exceed
first     seconds from coming to the first chunk, or to leaving without one: median and p99
gap       seconds from one chunk to the next: median and p99
made      frames per second that were made meanwhile, for everybody

First the capacity is measured: frames per second that reach --crowd viewers who play faster than the service works.
What comes later is a multiple of it. Two parts:

policies  at an overload of 1.5, those who are there at the same time want 1.5 times what can be made. Every policy gets
          the same viewers at the same times and admits them all (`engine.live_admission=all`), so that it alone decides
          who is served. "live": viewers only. "mixed": half of what is wanted is for videos that nobody watches.
          Counted are the viewers who come between the first --stay seconds and the last.
memory    every codec gets the same --memory: how many sessions have pages at once (in /v1/pool, every half second), and
          what viewers get who want just as much as can be made.

    python benchmarks/serving.py
    python benchmarks/serving.py --parts policies --policies fcfs deadline --counted 60
    python benchmarks/serving.py --parts memory --memory 16MiB --viewers 80
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lib.report import format_table, make_parser, note, save_report
from serving.figures import VISIT_HEADERS, cells, figures
from serving.load import Load, Outcome, bring, jobs_at, poisson_times, viewers_at
from serving.server import Server

PARTS = ("policies", "memory")
WORKLOADS = {"live": 0.0, "mixed": 0.5}
"""Share of what is wanted that is for videos that nobody watches."""
POLICIES = ("fcfs", "round_robin", "deadline")
CODECS = ("bf16", "auto")
COUNTLESS = {"serve.max_live": 10_000, "serve.max_queued": 100_000, "serve.max_connections": 10_000}
"""Limits that nobody meets."""
FASTEST = 100.0
"""Frames per second that the service does not make for one viewer."""
WARM_UP_SECONDS = 3.0
JOB_FRAMES = 48
LONG_FRAMES = 96
"""12 chunks: more than a window holds, so that a video needs as many pages as any."""
HEADERS = {"workload": "load", "policy": "policy", "codec": "codec", "resident": "resident"}


class Program:
    """What the parts share."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._given, self._folder = arguments, folder
        self._num_servers = 0

    def capacity(self) -> float:
        """Frames per second that reach viewers who want more than there is."""
        given = self._given
        seconds = WARM_UP_SECONDS + given.capacity_seconds
        num_frames = round(seconds * FASTEST)
        wishes = viewers_at([0.0] * given.crowd, num_frames, FASTEST, seconds, seconds, given.seed)
        visits = self._serve({}, Load(seconds, wishes)).visits
        num_frames = sum(
            visit.num_frames / len(visit.chunk_seconds) * sum(at > WARM_UP_SECONDS for at in visit.chunk_seconds)
            for visit in visits
            if visit.chunk_seconds
        )
        return num_frames / given.capacity_seconds

    def policies(self, capacity: float) -> list[dict[str, Any]]:
        """One row per workload and policy."""
        rows = []
        for workload, share_of_jobs in WORKLOADS.items():
            load = self._overload(capacity, share_of_jobs)
            for policy in self._given.policies:
                note(f"{workload}, {policy}: {len(load.wishes)} viewers, {len(load.jobs)} videos that nobody watches")
                outcome = self._serve({"engine.policy": policy}, load)
                counted = [visit for visit in outcome.visits if self._is_counted(visit.at_seconds)]
                rows.append(
                    {
                        "workload": workload,
                        "policy": policy,
                        **_made(outcome, load),
                        **figures(counted),
                    }
                )
        return rows

    def memory(self, capacity: float) -> list[dict[str, Any]]:
        """One row per codec."""
        given = self._given
        speed = capacity / given.viewers
        times = poisson_times(given.viewers / given.gather, 10 * given.gather, given.seed)[: given.viewers]
        end = times[-1] + given.long_stay
        load = Load(end, viewers_at(times, LONG_FRAMES, speed, given.long_stay, end, given.seed))
        rows = []
        for codec in CODECS:
            note(f"{codec} in {given.memory}: {len(load.wishes)} viewers at {speed:.2f} frames/s")
            settings = {"cache.memory": given.memory, "cache.codec": codec, "engine.policy": "deadline"}
            outcome = self._serve(settings, load)
            resident = {"resident": max(outcome.num_resident), "resident_p50": median(outcome.num_resident)}
            rows.append({"codec": codec, "speed": speed, **resident, **_made(outcome, load), **figures(outcome.visits)})
        return rows

    def _overload(self, capacity: float, share_of_jobs: float) -> Load:
        """Viewers and videos that want `--overload` times what the service can make."""
        given = self._given
        seconds = 2 * given.stay + given.counted
        wanted = given.overload * capacity
        per_viewer = round(given.speed * given.stay)
        times = poisson_times((1 - share_of_jobs) * wanted / per_viewer, seconds, given.seed)
        jobs = poisson_times(share_of_jobs * wanted / JOB_FRAMES, seconds, given.seed + 1) if share_of_jobs else []
        return Load(
            seconds,
            viewers_at(times, per_viewer, given.speed, given.stay, seconds, given.seed),
            jobs_at(jobs, JOB_FRAMES, given.seed + 1),
        )

    def _is_counted(self, at_seconds: float) -> bool:
        return self._given.stay <= at_seconds < self._given.stay + self._given.counted

    def _serve(self, settings: Mapping[str, object], load: Load) -> Outcome:
        """Brings the load to a server of its own."""
        self._num_servers += 1
        always = {"engine.live_admission": "all", "engine.max_batch_tokens": self._given.batch_tokens, **COUNTLESS}
        data = self._folder / str(self._num_servers)
        with Server(data, {**always, **settings}, self._given.threads) as server:
            return bring(server, load)


def _made(outcome: Outcome, load: Load) -> dict[str, float]:
    """Frames per second that reached viewers, and that were made for nobody."""
    for_viewers, for_nobody = sum(visit.num_frames for visit in outcome.visits), outcome.frames_of_jobs
    return {
        "frames_per_second": (for_viewers + for_nobody) / load.seconds,
        "jobs_frames_per_second": for_nobody / load.seconds,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The results of all parts, in the order of `PARTS`."""
    with tempfile.TemporaryDirectory() as folder:
        program = Program(arguments, Path(folder))
        capacity = program.capacity()
        note(f"the service makes {capacity:.1f} frames/s")
        results: dict[str, Any] = {"capacity_frames_per_second": capacity}
        for part in arguments.parts:
            results[part] = getattr(program, part)(capacity)
            save_report(arguments, "serving", results)
    return results


def show(arguments: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Prints the tables, and the ratios that the parts are for."""
    capacity = results["capacity_frames_per_second"]
    print(f"the service makes {capacity:.1f} frames/s; times in seconds\n")
    if rows := results.get("policies"):
        print(f"{arguments.overload:g} times as much is wanted, viewers play {arguments.speed:g} frames/s\n")
        _print_rows(("workload", "policy"), rows)
        ratios = {(row["workload"], row["policy"]): row["play_ratio"]["mean"] for row in rows}
        for workload, policy in ratios:
            if policy != "deadline" and (workload, "deadline") in ratios:
                gain = ratios[workload, "deadline"] / ratios[workload, policy]
                print(f"{workload}: deadline has {gain:.2f} times the play ratio of {policy}")
        print()
    if rows := results.get("memory"):
        print(f"{arguments.viewers} viewers, {arguments.memory} of pages\n")
        _print_rows(("codec", "resident"), rows)
        most = {row["codec"]: row["resident"] for row in rows}
        print(f"auto keeps {most['auto'] / most['bf16']:.1f} times as many sessions resident as bf16")


def _print_rows(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    table = [(*(str(row[name]) for name in names), *cells(row), f"{row['frames_per_second']:.1f}") for row in rows]
    print(format_table((*(HEADERS[name] for name in names), *VISIT_HEADERS, "made"), table) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes the JSON file."""
    arguments = parse(argv)
    results = measure(arguments)
    show(arguments, results)
    print(f"\nwritten to {arguments.out}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = make_parser("serving", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch-tokens", type=int, default=512, help="engine.max_batch_tokens: 4 chunks of the model")
    parser.add_argument("--crowd", type=int, default=12, help="viewers by whom capacity is measured")
    parser.add_argument("--capacity-seconds", type=float, default=12.0)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--overload", type=float, default=1.5)
    parser.add_argument("--speed", type=float, default=4.0, help="frames per second that a viewer plays")
    parser.add_argument("--stay", type=float, default=10.0, help="seconds")
    parser.add_argument("--counted", type=float, default=90.0, help="seconds in which viewers come that are counted")
    parser.add_argument("--memory", default="8MiB", help="of pages, for every codec")
    parser.add_argument("--viewers", type=int, default=36, help="of the part memory")
    parser.add_argument("--gather", type=float, default=5.0, help="seconds in which they come, on average")
    parser.add_argument("--long-stay", type=float, default=30.0, help="seconds that they stay")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
