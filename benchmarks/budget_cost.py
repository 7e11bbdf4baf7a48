"""What do heads in codecs of their own cost in time, next to all heads in one codec of as many bits?

Five minutes on two cores. One layer in the shape of Wan-1.3B: 12 heads x 128, chunks of 4680 tokens, with made-up klt
tables. "by head" mixes all rungs with pages over the heads, so that no neighbours share one, for keys and values apart;
all heads look back over the whole window.

store    a commit pass of the layer that sees nothing: encoding keys and values
attend   a denoise step of the layer over the cached chunks: decoding, rotating, attention

Every round runs all cases; the table shows medians, and the median of the ratio to the uniform codec within each round.

    python benchmarks/budget_cost.py
    python benchmarks/budget_cost.py --tokens 1560 --chunks 2 --rounds 9
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from lib.layers import made_up_tables
from lib.measuring import interleaved, median_ratio, seconds_of
from lib.report import format_table, make_parser, use_threads, write_report
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import stream_bytes
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.tables_file import Calibration
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.grid_rotary import GridRotary

UNIFORM, BY_HEAD = "klt1.5/klt3", "by head"
FRAMES, HEADS, HEAD_DIM = 3, 12, 128
MIX = (
    "klt0.75", "klt1.5", "klt2", "klt3", "klt0.75", "klt4", "klt0.75", "klt2", "klt1.5", "klt6", "klt1.5", "klt3",
)  # fmt: skip
"""Every rung with pages, 2.25 bits in the mean."""


class Layer:
    """A one-layer cache with some committed chunks."""

    def __init__(self, codecs: StreamCodecs, tokens: int, num_chunks: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        frequencies = 10000.0 ** -torch.linspace(0, 1, HEAD_DIM // 2, dtype=torch.float32)
        self._rope = GridRotary.of_sequence(frequencies, "half", num_cached=0)
        self._qkv = [torch.randn(tokens, HEADS, HEAD_DIM, generator=generator).bfloat16() for _ in range(3)]
        window = Window(sink_chunks=0, recent_chunks=num_chunks)
        spec = CacheSpec(1, HEADS, HEAD_DIM, codecs=codecs, tokens_per_frame=tokens // FRAMES, frames_per_block=FRAMES)
        tables = [made_up_tables(spec.shape.page, HEADS)]
        book = CodecBook(spec.shape.page, HEADS, Calibration.of("made up", tables, tables))
        memory = stream_bytes(spec.shape, window, spec.codecs, tokens)
        self._cache = PagedKVCache(spec, memory, book=book)
        self._stream = self._cache.open(window, tokens)
        self.bits = spec.shape.bits_per_value(tokens, codecs.steady)
        for _ in range(num_chunks):
            self.store()

    def store(self) -> None:
        """Commits one more chunk, which sees nothing."""
        with self._cache.commit([QueryRange(self._stream, visible=())]) as step:
            step.attend(0, *self._qkv, self._rope)

    def attend(self) -> None:
        """A denoise step over all chunks."""
        with self._cache.denoise([self._stream]) as step:
            step.attend(0, *self._qkv, self._rope)


def mixed() -> StreamCodecs:
    """The rungs of MIX, keys from the first head on, values from the last one back."""
    heads = [(0, h, h, f"{keys}/{values}") for h, (keys, values) in enumerate(zip(MIX, reversed(MIX), strict=True))]
    return StreamCodecs(ChunkCodecs.read("klt0.75", heads=heads))


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per case and operation."""
    choices = {UNIFORM: StreamCodecs(UNIFORM), BY_HEAD: mixed()}
    shape = (arguments.tokens, arguments.chunks, arguments.seed)
    layers = {name: Layer(codecs, *shape) for name, codecs in choices.items()}
    rows = []
    for operation in ("store", "attend"):
        calls = {name: partial(seconds_of, getattr(layer, operation)) for name, layer in layers.items()}
        seconds = interleaved(calls, arguments.rounds)
        rows += [
            {
                "operation": operation,
                "case": name,
                "bits": layers[name].bits,
                "seconds": seconds[name],
                "ratio": median_ratio(seconds[name], seconds[UNIFORM]),
            }
            for name in layers
        ]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON file."""
    parser = make_parser("budget_cost", __doc__)
    parser.add_argument("--tokens", type=int, default=4680, help="tokens of a chunk, a multiple of its 3 frames")
    parser.add_argument("--chunks", type=int, default=6, help="cached chunks")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    rows = measure(arguments)
    cells = [
        [row["operation"], row["case"], f"{row['bits']:.2f}", f"{median(row['seconds']):.3f}", f"{row['ratio']:.3f}"]
        for row in rows
    ]
    print(format_table(["", "storage", "bits", "seconds", f"/ {UNIFORM}"], cells))
    write_report(arguments, "budget_cost", {"rows": rows})


if __name__ == "__main__":
    main()
