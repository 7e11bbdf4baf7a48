"""Writes a trace of stream arrivals for `pagedvid capacity --trace`: a day with a quiet night and a busy evening.

    python tools/make_trace.py --streams 10000 --out day.jsonl
    pagedvid capacity --model self-forcing --gpu h100 --trace day.jsonl --gpus 1000

Arrivals are a Poisson process whose rate depends on the hour. Lengths are log-normal, resolutions from a list.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

DAY_SECONDS = 86400.0
PEAK_HOUR = 20
"""Busiest hour of the day; the quietest one is twelve hours away."""


def arrivals(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """The lines of the trace in order of time."""
    random = np.random.default_rng(arguments.seed)
    for start_seconds in start_times(random, arguments.streams, arguments.hours, arguments.swing):
        line: dict[str, object] = {
            "start_seconds": round(float(start_seconds), 3),
            "length_seconds": round(float(random.lognormal(np.log(arguments.median_seconds), arguments.spread)), 3),
        }
        if arguments.resolutions:
            line["resolution"] = str(random.choice(arguments.resolutions))
        if random.random() < arguments.guided:
            line["num_branches"] = 2
        yield line


def start_times(random: np.random.Generator, num_streams: int, hours: float, swing: float) -> np.ndarray:
    """Sorted start times in seconds. The rate is 1 + swing * cos(hour - peak hour); its integral is inverted."""
    times = np.linspace(0.0, hours * 3600, 10_001)
    rate = 1 + swing * np.cos((times / DAY_SECONDS - PEAK_HOUR / 24) * 2 * np.pi)
    integral = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2)])
    return np.sort(np.interp(random.random(num_streams) * integral[-1], integral, times))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000, help="number of arrivals (default: 10000)")
    parser.add_argument("--hours", type=float, default=24.0, help="length of the trace (default: 24)")
    parser.add_argument("--median-seconds", type=float, default=60.0, help="median length of a stream (default: 60)")
    parser.add_argument("--spread", type=float, default=1.0, help="standard deviation of log length (default: 1)")
    parser.add_argument("--swing", type=float, default=0.8, help="0: even over the day; 1: silent at night")
    parser.add_argument("--resolutions", nargs="*", metavar="WxH", help="all equally likely (default: the model's own)")
    parser.add_argument("--guided", type=float, default=0.0, help="share of streams with two branches (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="jsonl file to write")
    arguments = parser.parse_args(argv)
    if arguments.streams < 1 or arguments.hours <= 0 or arguments.median_seconds <= 0:
        parser.error("--streams, --hours and --median-seconds must be above zero")
    if not (0 <= arguments.swing <= 1 and 0 <= arguments.guided <= 1 and arguments.spread >= 0):
        parser.error("--swing and --guided must be from 0 to 1, --spread at least 0")
    with arguments.out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in arrivals(arguments))
    print(f"{arguments.streams} arrivals over {arguments.hours:g} h written to {arguments.out}")


if __name__ == "__main__":
    main()
