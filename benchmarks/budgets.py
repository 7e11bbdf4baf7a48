"""Where is a byte of the cache worth most: bits by head, by layer, look-back by head, or exact tokens?

Forty minutes on two cores. Every storage gets the same number of bytes and makes the same videos of the demo model,
with the same seeds as the bf16 cache. What budgets are spent by was measured on other prompts. Four parts:

bits       bits by head and its rivals (budgets/bits.py says which)
eviction   exact tokens in BF16, as many as the bytes buy, others unseen (peers/eviction.py)
default    the old default, klt1.5/klt3 for all heads, against fewer bits by head
long       what the last frames of long videos show, and the memory of a stream

Tables have one line per method and one column per budget in bits per value; "free" and "held" are two ways to make the
compared chunks (budgets/video.py). Means and standard errors over the prompts; gains are prompt by prompt. Frames that
differ by rounding alone have 58.9 dB. In "free", hardly anything has left a window yet, so that windows by head hold
more than their budget there.

    python benchmarks/budgets.py
    python benchmarks/budgets.py --parts eviction --prompts 4 --bits 2.25 0.75
    python benchmarks/budgets.py --parts bits --methods "uniform klt" "by head"
    python benchmarks/budgets.py --show benchmarks/results/budgets.json
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from budgets import bits, eviction, long, profiles
from budgets.show import show
from budgets.video import HELD_CHUNKS, Bench, Row, measure_rows
from lib.lab import Lab
from lib.quality import READ_FRAMES, draw_tasks
from lib.report import make_parser, save_report, use_threads
from pagedvid.models.demo.weights import load_demo

PARTS = ("bits", "eviction", "default", "long")
PROFILE_SEED = 1000
"""Added to the seed for the prompts that profiles are measured on, which no compared video has."""


class Program:
    """What the parts share: the model, the videos, and the reference, which is made once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model = load_demo(arguments.weights)
        self.num_frames = HELD_CHUNKS.stop * self.model.geometry.frames_per_chunk
        self.lab = self._lab(arguments.prompts, arguments.seed, self.num_frames)
        self._bench: Bench | None = None

    def bits(self) -> list[dict[str, Any]]:
        """One row per method and budget."""
        of_others = self._lab(self.arguments.profile_prompts, self.arguments.seed + PROFILE_SEED, self.num_frames)
        klt, ints = profiles.shipped_profile(self.arguments.weights), profiles.measure_int_profile(of_others)
        return self._measure(self._wanted(bits.bits_rows(self.lab, klt, ints, self.arguments.bits)))

    def eviction(self) -> list[dict[str, Any]]:
        """One row per method and budget."""
        tasks = draw_tasks(self.arguments.profile_prompts, self.arguments.seed + PROFILE_SEED)
        requests, num_steps = [task.request for task in tasks], self.arguments.steps
        samples = eviction.capture_prompts(self.model, self.lab.window.max_chunks, requests, num_steps)
        return self._measure(self._wanted(eviction.eviction_rows(self.lab, samples, self.arguments.bits)))

    def default(self) -> list[dict[str, Any]]:
        """The old default, then what takes its place."""
        klt = profiles.shipped_profile(self.arguments.weights)
        rows = bits.uniform_rows(long.OLD_DEFAULT)
        for budget in self.arguments.default_bits:
            rows += bits.by_head_rows(self.lab, klt, budget)
        return self._measure(rows)

    def long(self) -> list[dict[str, Any]]:
        """bf16, the old default, and what takes its place."""
        klt, arguments = profiles.shipped_profile(self.arguments.weights), self.arguments
        lab = replace(self.lab, num_frames=arguments.long_frames)
        tasks = draw_tasks(arguments.prompts, arguments.seed)
        return long.measure_long(lab, tasks, long.long_rows(lab, klt, arguments.long_bits), arguments.processes)

    def _lab(self, num_prompts: int, seed: int, num_frames: int) -> Lab:
        requests = [task.request for task in draw_tasks(num_prompts, seed)]
        return Lab(self.model, requests, num_frames, self.arguments.steps, self.arguments.weights)

    def _measure(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        if self._bench is None:
            self._bench = Bench.of(self.lab)
        return measure_rows(self._bench, rows, self.arguments.processes)

    def _wanted(self, rows: Sequence[Row]) -> list[Row]:
        """Those of --methods."""
        methods = self.arguments.methods
        return [row for row in rows if methods is None or row.method in methods]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes the JSON file part by part, prints tables, draws the plot into the same folder."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    if arguments.show is not None:
        show(json.loads(arguments.show.read_text())["results"], arguments.show.with_suffix(".png"))
        return
    program = Program(arguments)
    parts: dict[str, Callable[[], Any]] = {
        "bits": program.bits,
        "eviction": program.eviction,
        "default": program.default,
        "long": program.long,
    }
    results: dict[str, Any] = {}
    for name in arguments.parts:
        results[name] = parts[name]()
        save_report(arguments, "budgets", results)
    print(f"\nwritten to {arguments.out}")
    show(results, arguments.out.with_suffix(".png"))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; exits with a message if they cannot be measured."""
    parser = make_parser("budgets", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--prompts", type=int, default=32, help="videos to compare")
    parser.add_argument("--profile-prompts", type=int, default=6, help="other videos, to spend budgets by")
    parser.add_argument("--bits", type=float, nargs="+", default=list(bits.UNIFORM), help="budgets, bits per value")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="rows of the parts bits and eviction (default: all)"
    )
    parser.add_argument("--default-bits", type=float, nargs="+", default=[1.1, 1.2, 1.3], help="of the part default")
    parser.add_argument("--long-bits", type=float, nargs="+", default=[1.25, 0.75], help="of the part long")
    parser.add_argument("--long-frames", type=int, default=224, help="length of its videos")
    parser.add_argument("--steps", type=int, default=8, help="denoise steps")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="each takes other rows")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print and draw the results in this file; measure nothing"
    )
    parser.add_argument("--weights", type=Path, help="folder of the demo model's weights (default: the shipped ones)")
    arguments = parser.parse_args(argv)
    if arguments.prompts < 2 or arguments.profile_prompts < 1:
        parser.error("standard errors need two videos, and profiles one: raise --prompts or --profile-prompts")
    if arguments.long_frames < READ_FRAMES:
        parser.error(f"the last {READ_FRAMES} frames are read: --long-frames needs as many")
    return arguments


if __name__ == "__main__":
    main()
