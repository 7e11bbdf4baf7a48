"""How long does a walk remember what it saw, in the same memory, with every way to store its history?

The walk model goes out into a map and comes back by the same way (horizon/trips.py). A view that comes again must look
as it did: the landmarks of the first visit are looked for at the second one, by kind and place. What has left the
window cannot be known, and is invented anew. Four parts:

horizon      at equal bytes per stream, each storage with the window that the bytes allow: landmarks that are there
             again, in percent, by frames between two visits. "reach": up to which distance 90 % are.
bits         at equal windows, which hold the whole trip: what fewer bits cost, by distance near and far
correction   the same for codecs with step sizes, without the correction and with each kind of it
sinks        at equal bytes: one sink chunk, the given first frames, against none

"truth" is the PSNR of the last frame to the map, whose first frames were given. The JSON file has the landmarks of
every distance, and the PSNR of the second visit to the first one.

    python benchmarks/memory_horizon.py --parts horizon
    python benchmarks/memory_horizon.py --parts bits --trips 3 --out benchmarks/results/memory_horizon_bits.json
    python benchmarks/memory_horizon.py --parts horizon --trips 2 --frames-out 40 --bf16-chunks 3
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from horizon.plot import draw
from horizon.sheet import draw_strips
from horizon.trips import Revisits, Trip, bits_per_value, draw_trips, most_bytes, score, walk
from lib.caches import PRESETS
from lib.report import format_table, make_parser, note, save_report, use_threads
from pagedvid.cache.window import Window
from pagedvid.config.file import load_config
from pagedvid.config.sections import CacheConfig, Config, ModelConfig
from pagedvid.models.build import RunSpec, load_model, resolve
from pagedvid.models.registry import model_tables
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.models.walk.spec import FRAMES_PER_CHUNK

STORAGES = ("bf16", "int4", "int2", "quality", "balanced", "small")
OF_BITS = ("bf16", "int8", "int4", "int2", "token2-g64", "klt1.5/klt3", "quality", "balanced", "small")
OF_CORRECTION = ("int2", "token2-g64")
CORRECTIONS = ("off", "formula", "variance", "measured")
OF_STRIPS = ("bf16", "int2", "balanced")
OF_SINKS = ("bf16", "int2", "balanced")
PARTS = ("horizon", "bits", "correction", "sinks")
SCORED_EVERY = 4
"""Frames between the distances that are scored."""
BF16_ROWS = 32
"""Rows of a page, so that a chunk of 128 tokens fills its pages in bf16, too."""
FIRST_COLUMN = 8
"""Frames between two visits in the first column of a table; each column reaches twice as far as the one before."""
KNOWN = 90.0
"""Percentage of landmarks from which on a place counts as remembered."""


@dataclass(frozen=True)
class Row:
    """One way to store the history, and what is remembered with it."""

    storage: str
    correction: str
    sink_chunks: int
    recent_chunks: int
    bytes: int
    """Most that a stream holds."""
    bits: float
    """Per value of a full window, everything counted."""
    revisits: Revisits


class Program:
    """What the parts share: the model, the trips, and the walks, each of which is made once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        model = load_model(self._resolve("bf16", Window(0, 1)))
        assert isinstance(model, WalkModel)
        self.model = model
        self.num_chunks = -(-(2 * arguments.frames_out + 1) // FRAMES_PER_CHUNK)
        self.trips: list[Trip] = draw_trips(arguments.trips, arguments.frames_out, arguments.seed)
        self.strips: dict[str, tuple[str, np.ndarray]] = {}
        """Caption and first video of storages that are shown, in the memory that comes first."""
        self._rows: dict[tuple[str, str, Window], Row] = {}

    def horizon(self) -> dict[str, list[Row]]:
        """Rows by the number of chunks that bf16 keeps in the same bytes."""
        results = {}
        for num_chunks in self.arguments.bf16_chunks:
            budget = self.bytes_of("bf16", Window(0, num_chunks))
            results[str(num_chunks)] = [
                self._row(storage, self.longest(storage, budget, sink_chunks=0)) for storage in self.storages(STORAGES)
            ]
        return results

    def bits(self) -> list[Row]:
        """Rows whose windows hold the whole trip."""
        return [self._row(storage, Window(0, self.num_chunks)) for storage in self.storages(OF_BITS)]

    def correction(self) -> list[Row]:
        """The same by correction."""
        window = Window(0, self.num_chunks)
        return [self._row(storage, window, kind) for storage in OF_CORRECTION for kind in CORRECTIONS]

    def sinks(self) -> list[Row]:
        """Rows in the smallest memory of part "horizon"."""
        budget = self.bytes_of("bf16", Window(0, min(self.arguments.bf16_chunks)))
        return [
            self._row(storage, self.longest(storage, budget, sink_chunks))
            for storage in self.storages(OF_SINKS)
            for sink_chunks in (0, 1)
        ]

    def storages(self, wanted: Sequence[str]) -> list[str]:
        """Those of `wanted` that these weights have tables for."""
        if model_tables("walk", self.arguments.weights) is not None:
            return list(wanted)
        note("no klt tables are next to the weights: klt codecs and presets are left out")
        return [storage for storage in wanted if storage not in PRESETS and not storage.startswith("klt")]

    def longest(self, storage: str, budget: int, sink_chunks: int) -> Window:
        """The longest window that fits into `budget` bytes, up to one that holds the whole trip."""
        fits, too_long = 1, self.num_chunks + 1 - sink_chunks
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            is_within = self.bytes_of(storage, Window(sink_chunks, middle)) <= budget
            fits, too_long = (middle, too_long) if is_within else (fits, middle)
        return Window(sink_chunks, fits)

    def bytes_of(self, storage: str, window: Window) -> int:
        """Most bytes that a stream holds."""
        return most_bytes(self._resolve(storage, window).cache, window)

    def _row(self, storage: str, window: Window, correction: str = "auto") -> Row:
        run = self._resolve(storage, window, correction)
        correction = run.config.cache.correction
        if (storage, correction, window) not in self._rows:
            note(f"{storage}, correction {correction}, {window.sink_chunks} + {window.recent_chunks} chunks")
            videos = walk(self.model, run, self.trips, self.arguments.frames_out)
            if storage in OF_STRIPS:
                self.strips.setdefault(storage, (f"{storage}, {window.max_chunks} chunks", videos[0]))
            revisits = score(self.trips, videos, SCORED_EVERY)
            num_bytes, bits = most_bytes(run.cache, window), round(bits_per_value(run.cache, window), 3)
            row = Row(storage, correction, window.sink_chunks, window.recent_chunks, num_bytes, bits, revisits)
            self._rows[storage, correction, window] = row
        return self._rows[storage, correction, window]

    def _resolve(self, storage: str, window: Window, correction: str = "auto") -> RunSpec:
        weights = None if self.arguments.weights is None else str(self.arguments.weights)
        if storage in PRESETS:
            cache = load_config(PRESETS[storage]).cache
        else:
            cache = CacheConfig(codec=storage, page_rows=BF16_ROWS if storage == "bf16" else "auto")
        cache = replace(
            cache, sink_chunks=window.sink_chunks, recent_chunks=window.recent_chunks, correction=correction
        )
        return resolve(Config(model=ModelConfig(name="walk", weights=weights), cache=cache))


NAMES: dict[str, Callable[[Row], str]] = {
    "bits": lambda row: row.storage,
    "correction": lambda row: f"{row.storage} {row.correction}",
    "sinks": lambda row: f"{row.storage} {row.sink_chunks} sinks",
}
"""What a table calls its rows."""


def columns(frames_out: int) -> list[tuple[int, int]]:
    """(Nearest, farthest) distance of every column."""
    ends = [0, FIRST_COLUMN]
    while ends[-1] < 2 * frames_out:
        ends.append(min(2 * ends[-1], 2 * frames_out))
    return [(before + 1, end) for before, end in pairwise(ends)]


def table(rows: Sequence[Row], frames_out: int, name_of: Callable[[Row], str]) -> str:
    """One line per row; percentages of landmarks."""
    spans = columns(frames_out)
    headers = ["", "chunks", "bits", *(f"-{end}" for _, end in spans), "reach", "truth"]
    lines = []
    for row in rows:
        revisits = row.revisits
        lines.append(
            [
                name_of(row),
                f"{row.sink_chunks + row.recent_chunks}",
                f"{row.bits:.2f}",
                *(_percent(revisits.accuracy(*span)) for span in spans),
                str(revisits.reach(KNOWN)),
                f"{revisits.truth_psnr:.1f}",
            ]
        )
    return format_table(headers, lines)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"


def print_horizon(results: dict[str, list[Row]], frames_out: int) -> None:
    """A table for each memory size."""
    for num_chunks, rows in results.items():
        print(f"\n{rows[0].bytes / 2**20:.2f} MiB per stream, in which bf16 keeps {num_chunks} chunks\n")
        print(table(rows, frames_out, lambda row: row.storage))


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes the JSON file and, into the same folder, plot and strips."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    program, results = Program(arguments), {}
    for part in arguments.parts:
        rows = getattr(program, part)()
        if part == "horizon":
            results[part] = {size: [asdict(row) for row in of_size] for size, of_size in rows.items()}
            save_report(arguments, "memory_horizon", results)
            print_horizon(rows, arguments.frames_out)
            draw(rows, arguments.out.with_suffix(".png"))
            shown = [end for _, end in columns(arguments.frames_out)]
            draw_strips(dict(program.strips.values()), shown, arguments.out.with_name("memory_horizon_strips.png"))
        else:
            results[part] = [asdict(row) for row in rows]
            save_report(arguments, "memory_horizon", results)
            print(f"\n{part}\n\n{table(rows, arguments.frames_out, NAMES[part])}")
    print(f"\nwritten to {arguments.out}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; exits with a message if they cannot be measured."""
    parser = make_parser("memory_horizon", __doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--trips", type=int, default=5, help="videos, each on a map of its own")
    parser.add_argument("--frames-out", type=int, default=80, help="frames before a trip turns back")
    help_chunks = "memory sizes, as numbers of chunks that they hold in bf16"
    parser.add_argument("--bf16-chunks", type=int, nargs="+", default=[3, 8], metavar="N", help=help_chunks)
    parser.add_argument("--weights", type=Path, help="folder of the walk model's weights (default: the shipped ones)")
    arguments = parser.parse_args(argv)
    if arguments.trips < 1 or arguments.frames_out < FIRST_COLUMN:
        parser.error(f"give at least 1 trip and {FIRST_COLUMN} frames out")
    if min(arguments.bf16_chunks) < 2 or len(set(arguments.bf16_chunks)) < len(arguments.bf16_chunks):
        parser.error("--bf16-chunks are whole numbers of at least 2, none twice")
    return arguments


if __name__ == "__main__":
    main()
