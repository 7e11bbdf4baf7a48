"""What do several workers on Ray gain over one process, what does Ray cost for each video, and are the videos the same?

Five minutes on two cores. Every round makes the same videos of the demo model in every way, in processes of their own:

one process    `pagedvid generate`, pinned to one core
one worker     `pagedvid generate --ray local --workers 1`: the driver and Ray's own processes have the other cores
N workers      the same with a worker for each core, so that the driver and Ray share the cores with them

All workers compute with one thread. Times begin when the first engine is ready; `start` is what comes before: Python,
Ray, the model. The table shows medians, and the median over the rounds of the speed relative to the one process of the
same round. `driver` is the time that the driver's process has computed for each video between the first and the last
that was done: handing out prompts, renaming files, manifest, progress. `same` counts the files that are those of the
one process to the last byte, in runs of their own with `engine.reproducible`. `others` is how many cores were in use by
others when a round began: above a few tenths, the figures are not for idle cores.

    python benchmarks/cluster.py
    python benchmarks/cluster.py --videos 32 --rounds 5
    python benchmarks/cluster.py --readme docs/scale.md      # replaces the table of a page
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lib.pages import markdown, replace_table
from lib.report import format_table, make_parser, note, write_report
from pagedvid.cli.cores import cores_used_by_others
from pagedvid.models.demo.captions import caption
from pagedvid.models.demo.world import random_scene

ROOT = Path(__file__).resolve().parents[1]
ALONE = "one process"
HEADERS = ("videos made by", "frames/s", "relative", "start s", "driver ms/video", "same")
_USER, _SYSTEM = 11, 12
"""Places of the clock ticks in /proc/PID/stat, counted after the name of the program."""


def ways(num_cores: int) -> dict[str, tuple[str, ...]]:
    """The flags of every case."""
    return {
        ALONE: (),
        "one worker": ("--ray", "local", "--workers", "1"),
        f"{num_cores} workers": ("--ray", "local", "--workers", str(num_cores)),
    }


def write_prompts(path: Path, num_videos: int, seed: int) -> None:
    """So many captions of the demo's world."""
    chance = np.random.default_rng(seed)
    path.write_text("".join(f"{caption(random_scene(chance))}\n" for _ in range(num_videos)))


def run(arguments: argparse.Namespace, flags: Sequence[str]) -> tuple[dict[str, float], set[str]]:
    """Seconds and frames per second of one command, its driver's seconds per video, and the digests of its files."""
    pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if "--ray" not in flags else []
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        write_prompts(prompts, arguments.videos, arguments.seed)
        command = [*pinned, sys.executable, "-m", "pagedvid", "generate", "--prompts", str(prompts)]
        command += ["--out", f"{folder}/out", "--frames", str(arguments.frames), "--seed", str(arguments.seed)]
        command += ["--set", "generate.threads=1", *flags]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started = time.perf_counter()
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            at_done = [cpu_seconds(process.pid) for line in process.stderr if line.startswith("done ")]
            summary = process.stdout.read()
        seconds = time.perf_counter() - started
        digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder, "out").glob("*.mp4")}
    made = re.search(r"^frames  \d+ in ([\d.]+) s = ([\d.]+) frames/s", summary, re.MULTILINE)
    assert made and len(at_done) == arguments.videos, summary
    times = {
        "frames_per_second": float(made[2]),
        "start_seconds": seconds - float(made[1]),
        "driver_seconds_per_video": (at_done[-1] - at_done[0]) / (len(at_done) - 1),
    }
    return times, digests


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / os.sysconf("SC_CLK_TCK")


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[float]]:
    """One row per case, and the cores that others used at the start of every round."""
    cases = ways(len(os.sched_getaffinity(0)))
    found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    others = []
    for number in range(arguments.rounds):
        note(f"round {number + 1} of {arguments.rounds}")
        others.append(cores_used_by_others(1.0))
        for case, flags in cases.items():
            found[case].append(run(arguments, flags)[0])
    note("once more, reproducibly")
    digests = {case: run(arguments, [*flags, "--set", "engine.reproducible=true"])[1] for case, flags in cases.items()}
    alone = [one["frames_per_second"] for one in found[ALONE]]
    rows: list[dict[str, Any]] = []
    for case, runs in found.items():
        columns: dict[str, Any] = {name: [one[name] for one in runs] for name in runs[0]}
        speeds = columns["frames_per_second"]
        ratio = median(speed / single for speed, single in zip(speeds, alone, strict=True))
        same = len(digests[case] & digests[ALONE])
        rows.append({"case": case, **columns, "over_one_process": ratio, "same_files": same})
    return rows, others


def cells(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table; a process without Ray computes the videos itself, so that it has no driver."""
    return [
        (
            row["case"],
            f"{median(row['frames_per_second']):.1f}",
            f"{row['over_one_process']:.2f}",
            f"{median(row['start_seconds']):.1f}",
            "-" if row["case"] == ALONE else f"{1000 * median(row['driver_seconds_per_video']):.0f}",
            str(row["same_files"]),
        )
        for row in rows
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON file."""
    parser = make_parser("cluster", __doc__)
    parser.add_argument("--videos", type=int, default=16, help="at least 2")
    parser.add_argument("--frames", type=int, default=48, help="length of every video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write the table into this page")
    arguments = parser.parse_args(argv)
    rows, others = measure(arguments)
    print(format_table(HEADERS, cells(rows)))
    if arguments.readme:
        replace_table(arguments.readme, "cluster", markdown(HEADERS, cells(rows)))
    print(f"\nothers: {', '.join(f'{cores:.2f}' for cores in others)} cores")
    write_report(arguments, "cluster", {"rows": rows, "others": others})


if __name__ == "__main__":
    main()
