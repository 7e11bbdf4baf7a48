"""Does `pagedvid generate` use the cores well when other programs use them too, and when none does?

Ten minutes on two cores. Every round runs `pagedvid generate` on the demo prompts in every way, in processes of their
own: first on cores that this program leaves idle, then with a busy loop (`while True: pass`) for every core.

default        the settings as they are: how threads wait, and how many there are, is chosen at the start
one thread     generate.threads=1
all, sleeping  a thread per core; a thread that waits for another sleeps (OMP_WAIT_POLICY=PASSIVE)
all, spinning  a thread per core; a thread that waits for another spins for a while: OpenMP's own default

The table shows medians of frames per second, and the median over the rounds of the ratio to the best of the three fixed
ways within each round. A run that takes longer than --limit seconds counts as that long. `others` is how many cores
were in use when the round began: above a few tenths, the figures for idle cores are not for idle cores.

    python benchmarks/busy_cores.py
    python benchmarks/busy_cores.py --rounds 5 --frames 24
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from lib.report import format_table, make_parser, note, write_report
from pagedvid.cli.cores import CHOSEN_BY_USER, cores_used_by_others

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ROOT / "configs" / "demo_prompts.txt"
LOADS = ("idle", "busy")
DEFAULT = "default"
SPINNING = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}
"""What the OpenMP libraries of GCC and LLVM do when nothing is set."""


def ways(num_cores: int) -> dict[str, tuple[dict[str, str], str]]:
    """Environment variables and `generate.threads` of every case."""
    return {
        DEFAULT: ({}, "auto"),
        "one thread": ({}, "1"),
        "all, sleeping": ({"OMP_WAIT_POLICY": "PASSIVE"}, str(num_cores)),
        "all, spinning": (SPINNING, str(num_cores)),
    }


@contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """So many other programs that want a core each."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(arguments: argparse.Namespace, variables: dict[str, str], threads: str) -> dict[str, Any]:
    """Frames per second of one command, and the threads that it chose (None: they were given)."""
    environment = {
        name: value for name, value in os.environ.items() if name not in (*CHOSEN_BY_USER, "OMP_NUM_THREADS")
    }
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "pagedvid", "generate", "--prompts", str(PROMPTS)]
    command += [
        "--frames",
        str(arguments.frames),
        "--seed",
        str(arguments.seed),
        "--set",
        f"generate.threads={threads}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--out", folder]
        try:
            done = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True, timeout=arguments.limit
            )
        except subprocess.TimeoutExpired:
            num_videos = sum(1 for line in PROMPTS.read_text().splitlines() if line and not line.startswith("#"))
            return {"frames_per_second": num_videos * arguments.frames / arguments.limit, "threads": None}
    made = re.search(r"^frames  .* = ([\d.]+) frames/s", done.stdout, re.MULTILINE)
    assert made, done.stdout
    chosen = re.search(r"^threads: (\d+)", done.stderr, re.MULTILINE)
    return {"frames_per_second": float(made[1]), "threads": int(chosen[1]) if chosen else None}


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[float]]:
    """One row per load and case, and the cores that others used at the start of every round."""
    num_cores = len(os.sched_getaffinity(0))
    cases = ways(num_cores)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {(load, case): [] for load in LOADS for case in cases}
    others = []
    for number in range(arguments.rounds):
        note(f"round {number + 1} of {arguments.rounds}")
        others.append(cores_used_by_others(1.0))
        for load in LOADS:
            with busy_loops(num_cores if load == "busy" else 0):
                for case, (variables, threads) in cases.items():
                    found[load, case].append(run(arguments, variables, threads))
    speeds = {key: [one["frames_per_second"] for one in runs] for key, runs in found.items()}
    rows = []
    for (load, case), runs in found.items():
        fixed = [speeds[load, other] for other in cases if other != DEFAULT]
        ratios = [speed / max(best) for speed, *best in zip(speeds[load, case], *fixed, strict=True)]
        rows.append(
            {
                "load": load,
                "case": case,
                "frames_per_second": speeds[load, case],
                "over_best_fixed": median(ratios),
                "threads": [one["threads"] for one in runs],
            }
        )
    return rows, others


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON file."""
    parser = make_parser("busy_cores", __doc__)
    parser.add_argument("--frames", type=int, default=48, help="length of every video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that one run may take")
    arguments = parser.parse_args(argv)
    rows, others = measure(arguments)
    table = [
        (
            row["load"],
            row["case"],
            f"{median(row['frames_per_second']):.1f}",
            f"{row['over_best_fixed']:.2f}",
            " ".join(str(number) for number in row["threads"] if number) or "-",
        )
        for row in rows
    ]
    print(f"videos of {arguments.frames} frames; others: {', '.join(f'{cores:.1f}' for cores in others)} cores\n")
    print(format_table(("cores", "run", "frames/s", "/ best fixed", "threads chosen"), table))
    write_report(arguments, "busy_cores", {"rows": rows, "cores_used_by_others": others})


if __name__ == "__main__":
    main()
