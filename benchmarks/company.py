"""How much does a video change when others are generated at the same time, and what does `engine.reproducible` cost?

Ten minutes on one core. In one process, the demo model makes the same videos alone and in batches with 1, 3 and 7
others. Their pixels are compared, levels 0 to 255:

same     number of videos whose every pixel is equal
max      largest difference of a level           > 1     share of levels that differ by more than 1
99.99 %  percentile of the differences           PSNR    of all videos together, and of the worst one; at most 58.9 dB

How float32 products are rounded depends on their shape. A difference in the last bit can change a code in a quantized
page, and later steps amplify it. With `engine.reproducible`, each video has its forwards to itself: those rows must
show no difference, or the benchmark ends with an error. The second table shows what this costs: frames per second,
medians of interleaved rounds.

    python benchmarks/company.py
    python benchmarks/company.py --codecs int2 --frames 96 --rounds 0
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from lib.lab import engine_videos
from lib.measuring import interleaved, median_ratio, seconds_of
from lib.report import format_table, make_parser, note, use_threads, write_report
from pagedvid.config.sections import CacheConfig, Config, EngineConfig, ModelConfig
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import VideoRequest
from pagedvid.models.build import build_engine, resolve
from pagedvid.models.demo.captions import caption
from pagedvid.models.demo.world import random_scene
from pagedvid.quality.metrics import psnr

Videos = dict[str, np.ndarray]
"""uint8 [frames, height, width, 3] by id."""


class Workload:
    """Videos of one length; the number at once, the cache, and whether they share forwards vary."""

    def __init__(self, weights: str | None, num_videos: int, num_frames: int, seed: int) -> None:
        chance = np.random.default_rng(seed)
        self.requests = [
            VideoRequest(str(number), caption(random_scene(chance)), num_frames, seed + number)
            for number in range(num_videos)
        ]
        self._model = ModelConfig(weights=weights)

    def videos(self, codec: str, num_together: int, reproducible: bool = False) -> Videos:
        """All videos, in batches of `num_together` that start together."""
        made: Videos = {}
        for first in range(0, len(self.requests), num_together):
            made |= engine_videos(
                self._engine(codec, num_together, reproducible), self.requests[first : first + num_together]
            )
        return made

    def seconds(self, codec: str, num_together: int, reproducible: bool) -> float:
        """Seconds to make `num_together` videos at once."""
        engine = self._engine(codec, num_together, reproducible)
        requests = [replace(self.requests[0], id=str(seed), seed=seed) for seed in range(num_together)]
        return seconds_of(lambda: engine_videos(engine, requests))

    def _engine(self, codec: str, num_together: int, reproducible: bool) -> Engine:
        how = EngineConfig(
            max_batch_tokens=2**20, concurrent=num_together, policy="round_robin", reproducible=reproducible
        )
        config = Config(model=self._model, cache=CacheConfig(memory="64MiB", codec=codec), engine=how)
        return build_engine(resolve(config))


def difference(alone: Videos, together: Videos) -> dict[str, float]:
    """The columns of the first table, over all videos."""
    ids = list(alone)
    a, b = (np.stack([videos[id] for id in ids]) for videos in (alone, together))
    apart = np.abs(a.astype(np.int16) - b)
    return {
        "same_videos": int((apart.max(axis=tuple(range(1, apart.ndim))) == 0).sum()),
        "max": int(apart.max()),
        "percentile_99_99": float(np.percentile(apart, 99.99)),
        "share_above_1": float((apart > 1).mean()),
        "psnr": psnr(a, b),
        "worst_psnr": min(psnr(alone[id], together[id]) for id in ids),
    }


def compare(workload: Workload, codecs: Sequence[str], others: Sequence[int]) -> list[dict[str, Any]]:
    """One row per codec and number of others, and one per codec for reproducible videos with the most others.

    Raises AssertionError if the reproducible videos differ from those made alone.
    """
    rows: list[dict[str, Any]] = []
    for codec in codecs:
        note(f"videos in {codec}")
        alone = workload.videos(codec, 1)
        for reproducible, number in [*((False, number) for number in others), (True, max(others))]:
            found = difference(alone, workload.videos(codec, number + 1, reproducible))
            rows.append({"codec": codec, "others": number, "reproducible": reproducible, **found})
        assert rows[-1]["max"] == 0, f"{codec}: reproducible videos differ from those made alone"
    return rows


def measure_speed(workload: Workload, codec: str, streams: Sequence[int], num_rounds: int) -> list[dict[str, Any]]:
    """One row per number of videos at once."""
    cases = [(number, reproducible) for number in streams for reproducible in (False, True)]
    workload.seconds(codec, 1, False)  # warms up
    runs = {case: partial(workload.seconds, codec, *case) for case in cases}
    seconds = interleaved(runs, num_rounds)
    num_frames = workload.requests[0].num_frames
    return [
        {
            "streams": number,
            "codec": codec,
            "seconds_shared": seconds[number, False],
            "seconds_reproducible": seconds[number, True],
            "shared_frames_per_second": number * num_frames / median(seconds[number, False]),
            "reproducible_frames_per_second": number * num_frames / median(seconds[number, True]),
            "reproducible_over_shared": median_ratio(seconds[number, False], seconds[number, True]),
        }
        for number in streams
    ]


def comparison_table(rows: Sequence[Mapping[str, Any]], num_videos: int) -> str:
    """The table of differences."""
    headers = ("cache", "others", "forwards", "same", "max", "99.99 %", "> 1", "PSNR", "worst")
    cells = [
        (
            row["codec"],
            str(row["others"]),
            "own" if row["reproducible"] else "shared",
            f"{row['same_videos']}/{num_videos}",
            str(row["max"]),
            f"{row['percentile_99_99']:.1f}",
            f"{100 * row['share_above_1']:.4f} %",
            f"{row['psnr']:.1f}",
            f"{row['worst_psnr']:.1f}",
        )
        for row in rows
    ]
    return format_table(headers, cells)


def speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of speeds."""
    cells = [
        (
            str(row["streams"]),
            f"{row['shared_frames_per_second']:.1f}",
            f"{row['reproducible_frames_per_second']:.1f}",
            f"{row['reproducible_over_shared']:.3f}",
        )
        for row in rows
    ]
    return format_table(("streams", "frames/s shared", "frames/s reproducible", "ratio"), cells)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes the JSON file."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    workload = Workload(arguments.weights, arguments.videos, arguments.frames, arguments.seed)
    rows = compare(workload, arguments.codecs, arguments.others)
    print(f"{arguments.videos} videos of {arguments.frames} frames, {torch.get_num_threads()} threads\n")
    print(comparison_table(rows, arguments.videos))
    results: dict[str, Any] = {"rows": rows}
    if arguments.rounds:
        results["speed"] = measure_speed(workload, arguments.codecs[-1], arguments.streams, arguments.rounds)
        print(f"\n{arguments.codecs[-1]}, {arguments.rounds} rounds\n")
        print(speed_table(results["speed"]))
    write_report(arguments, "company", results)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = make_parser("company", __doc__)
    parser.add_argument("--codecs", nargs="+", metavar="CODEC",
                        default=["fp32", "bf16", "int4", "int2", "klt1.5/klt3"])  # fmt: skip
    parser.add_argument("--others", type=int, nargs="+", default=[1, 3, 7], help="videos that run together with each")
    parser.add_argument("--videos", type=int, default=16, help="number of videos to compare")
    parser.add_argument("--frames", type=int, default=40, help="length of every video")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8], help="videos at once, for speed")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the speed measurement; 0 leaves it out")
    parser.add_argument("--weights", help="folder of the demo model's weights (default: the shipped ones)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
