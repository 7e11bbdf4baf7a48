"""What is left, and what was wrong, after twenty minutes of everything at once, or after twenty times kill -9?

soak   The sessions of a service over a toy model in this process: users with random verbs, clients that are slow and
       that vanish, a pool and a host memory that are too small, restarts, and faults: the model raises at a random
       layer and step, an allocation fails, the disk is full, the bookkeeping is declared wrong, the device is declared
       lost, an engine cannot be built. Nothing must be found: no page, byte, row, file or thread is left, memory is
       flat, and videos that no fault concerned have the bytes of a quiet run (tests/service/soak).
kills  A real `pagedvid serve` with the demo model is killed under load at random moments and started again. Every video
       that it accepted must end complete, once, with the frames of an undisturbed run (tests/service/kills.py).

The exit code is 1 if anything was found.

    python benchmarks/soak.py
    python benchmarks/soak.py --parts soak --minutes 1 --seed 7
    python benchmarks/soak.py --parts kills --kills 20
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests, which this runs longer than they do

from lib.report import make_parser, note, save_report, use_threads
from tests.service.kills import kill_repeatedly
from tests.service.soak.run import soak

PARTS = ("soak", "kills")


def run_soak(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the soak found."""
    report = soak(60 * arguments.minutes, arguments.seed, folder)
    print(f"soak: {arguments.minutes:g} minutes, {report.num_restarts} restarts, {report.num_compared} videos compared")
    print(f"  calls   {sum(report.calls.values())}, most swapped {report.most_swapped_bytes} B")
    print(f"  faults  {', '.join(f'{number} {kind}' for kind, number in report.faults.items())}")
    return asdict(report)


def run_kills(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the kills left."""
    report = kill_repeatedly(arguments.kills, arguments.seed, folder)
    unfinished, with_checkpoint = sum(report.num_unfinished_at_kills), sum(report.num_checkpoints_at_kills)
    print(f"kills: {arguments.kills}, {len(report.accepted)} videos accepted")
    print(f"  {unfinished} were unfinished at kills, {with_checkpoint} of them with a checkpoint")
    return asdict(report)


RUNS = {"soak": run_soak, "kills": run_kills}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts, prints what they found, writes the JSON file; the exit code."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    logging.getLogger("pagedvid").setLevel(logging.CRITICAL)  # what breaks on purpose is no news
    results: dict[str, Any] = {}
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            note(f"{part} begins")
            results[part] = RUNS[part](arguments, Path(folder))
        save_report(arguments, "soak", results)
        for finding in results[part]["findings"]:
            print(f"  FOUND   {finding}")
    num_findings = sum(len(result["findings"]) for result in results.values())
    print(f"\n{num_findings} findings; written to {arguments.out}")
    return int(num_findings > 0)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = make_parser("soak", __doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=20.0, help="of the soak")
    parser.add_argument("--kills", type=int, default=20)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
