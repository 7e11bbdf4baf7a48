"""How many frames per second does the demo model make, and in how much memory, by number of videos at once?

Six minutes on two cores.

Speed: every case generates `streams` videos at once, in one process. Every round runs all cases; medians are shown. The
model is small and its history short, so low bits save memory here, not time. "own" is the share of the step time that
the engine spends outside the model's forward: scheduling, planning, publishing, sampling, decoding frames.

Memory: every case runs once more in a process of its own, with a pool of exactly the pages that it reserves.

pages    bytes of the pages in use, at their peak
process  peak of the process's memory in RAM, less what it had after the model was loaded and had run once: pages,
         scratch and activations of the batch, without the model, Python and PyTorch

    python benchmarks/throughput.py
    python benchmarks/throughput.py --streams 1 16 --frames 96
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lib.measuring import interleaved, median_ratio, peak_resident_bytes, resident_bytes, seconds_of
from lib.report import format_table, make_parser, note, use_threads, write_report
from pagedvid.cache.stream_sizes import stream_bytes
from pagedvid.cache.window import Window
from pagedvid.config.sections import CacheConfig, Config, ModelConfig
from pagedvid.engine.engine import Engine
from pagedvid.engine.protocol import VideoModel
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.models.build import resolve
from pagedvid.models.demo.weights import load_demo
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.units import format_bytes

PROMPT = "a large red circle moving left on a black background"
Case = tuple[int, str]
"""(videos at once, codec)."""


@dataclass(frozen=True)
class MemoryUse:
    """Memory of one case in bytes."""

    pages: int
    reserved: int
    baseline: int
    """In RAM before the engine is made."""
    peak: int


class Workload:
    """Videos of one length; the number at once and the cache vary."""

    def __init__(self, weights: Path | None, num_frames: int, seed: int) -> None:
        self._model: VideoModel = load_demo(weights)
        self._weights = None if weights is None else str(weights)
        self._num_frames = num_frames
        self._seed = seed

    def engine(self, case: Case) -> Engine:
        """An engine with all videos submitted, and a cache that they fill."""
        num_streams, codec = case
        geometry = self._model.geometry
        window = Window(positions=self._model.positions)
        run = resolve(Config(model=ModelConfig(weights=self._weights), cache=CacheConfig(codec=codec)))
        spec = run.cache
        per_stream = stream_bytes(spec.shape, window, spec.codecs, geometry.chunk_tokens)
        max_batch_tokens = num_streams * geometry.chunk_tokens
        cache = PagedKVCache(spec, num_streams * per_stream, tables=run.tables)
        engine = Engine(self._model, cache, window, max_batch_tokens=max_batch_tokens, max_concurrent=num_streams)
        for number in range(num_streams):
            engine.submit(VideoRequest(str(number), PROMPT, self._num_frames, self._seed + number))
        return engine

    def run(self, case: Case, own_shares: list[float]) -> float:
        """Seconds to generate all videos; appends the engine's own share of the time to `own_shares`."""
        engine = self.engine(case)
        seconds = seconds_of(lambda: drain(engine))
        stats = engine.stats()
        own_shares.append(1 - stats.forward_seconds / stats.step_seconds)
        return seconds

    def memory(self, case: Case) -> MemoryUse:
        """Memory of a run. The process must not have done anything else yet."""
        warm_up = self.engine((1, case[1]))
        warm_up.step()
        warm_up.close()
        baseline = resident_bytes()
        engine = self.engine(case)
        drain(engine)
        stats = engine.cache.stats()
        return MemoryUse(
            pages=stats.pages_peak * stats.page_bytes,
            reserved=stats.num_pages * stats.page_bytes,
            baseline=baseline,
            peak=peak_resident_bytes(),
        )


def drain(engine: Engine) -> None:
    """Runs an engine to its end. Raises the error of the first video that fails."""
    for output in engine.run():
        if not isinstance(output, ChunkOutput):
            raise output.error


def memory_in_own_process(arguments: argparse.Namespace, case: Case) -> MemoryUse:
    """`Workload.memory` in a new interpreter."""
    command = [sys.executable, __file__, "--memory-of", str(case[0]), case[1], "--frames", str(arguments.frames)]
    command += ["--threads", str(torch.get_num_threads()), "--seed", str(arguments.seed)]
    command += ["--weights", str(arguments.weights)] if arguments.weights else []
    note(f"memory: {case[0]} x {case[1]}")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return MemoryUse(**json.loads(done.stdout))


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per case."""
    workload = Workload(arguments.weights, arguments.frames, arguments.seed)
    cases = [(num_streams, codec) for num_streams in arguments.streams for codec in arguments.codecs]
    own_shares: dict[Case, list[float]] = {case: [] for case in cases}
    workload.run((1, arguments.codecs[0]), [])  # warms up
    runs = {case: partial(workload.run, case, own_shares[case]) for case in cases}
    seconds = interleaved(runs, arguments.rounds)
    rows = []
    for case in cases:
        num_streams, codec = case
        rows.append(
            {
                "streams": num_streams,
                "codec": codec,
                "seconds": seconds[case],
                "frames_per_second": num_streams * arguments.frames / median(seconds[case]),
                "speed_over_first_codec": median_ratio(seconds[num_streams, arguments.codecs[0]], seconds[case]),
                "own_share": median(own_shares[case]),
                "memory_bytes": asdict(memory_in_own_process(arguments, case)),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON file."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    if arguments.memory_of is not None:
        num_streams, codec = arguments.memory_of
        workload = Workload(arguments.weights, arguments.frames, arguments.seed)
        print(json.dumps(asdict(workload.memory((int(num_streams), codec)))))
        return
    rows = measure(arguments)
    first = arguments.codecs[0]
    print(f"videos of {arguments.frames} frames, {arguments.rounds} rounds, {torch.get_num_threads()} threads\n")
    table = [
        (
            str(row["streams"]),
            row["codec"],
            f"{row['frames_per_second']:.1f}",
            f"{row['speed_over_first_codec']:.3f}",
            f"{100 * row['own_share']:.2f} %",
            format_bytes(row["memory_bytes"]["pages"]),
            format_bytes(row["memory_bytes"]["peak"] - row["memory_bytes"]["baseline"]),
        )
        for row in rows
    ]
    print(format_table(("streams", "cache", "frames/s", f"/ {first}", "own", "pages", "process"), table))
    write_report(arguments, "throughput", {"rows": rows})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = make_parser("throughput", __doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--codecs", nargs="+", default=["bf16", "int2"], metavar="CODEC", help="such as int4 or int4/int2"
    )
    parser.add_argument("--frames", type=int, default=48, help="length of every video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", type=Path, help="folder of the demo model's weights (default: the shipped ones)")
    parser.add_argument("--memory-of", nargs=2, metavar=("STREAMS", "CODEC"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
