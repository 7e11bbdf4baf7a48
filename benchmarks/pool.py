"""Does the bookkeeping of a chunk get slower with the number of open streams, from 1 to 1000? Takes half a minute.

Microseconds to open, commit, fork and release. No tensor is involved: the pool has no bytes (device "meta"), and a
commit marks its layers as written instead of encoding them. The chunk is Wan-1.3B's: 30 layers x 12 heads x 74 pages of
int2. The pool always has `streams` other streams, each with its window reserved and one chunk committed. Every
repetition then runs, on one more stream,

open      reserves the peak of a window of 1 sink + 6 recent chunks
commit    plans the step, takes 26640 page ids, publishes the chunk
fork      makes a second stream that shares the chunk
release   ends the fork, whose chunk is shared, then the stream, which frees 26640 page ids

The table shows medians of the repetitions, and their growth from the fewest to the most streams: 1.0 is none.

    python benchmarks/pool.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from lib.report import format_table, make_parser, use_threads, write_report
from pagedvid.cache.manager import CacheManager
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import stream_bytes
from pagedvid.cache.window import Window

OPERATIONS = ("open", "commit", "fork", "release fork", "release")
SPARE_STREAMS = 2
"""The stream that is timed and its fork."""


class Pool:
    """Open streams over a pool without bytes."""

    def __init__(self, shape: KVShape, chunk_tokens: int, window: Window, max_streams: int) -> None:
        spec = CacheSpec(shape.num_layers, shape.num_kv_heads, shape.head_dim, codecs=StreamCodecs("int2"))
        per_stream = stream_bytes(shape, window, spec.codecs, chunk_tokens)
        self._manager = CacheManager(spec, (max_streams + SPARE_STREAMS) * per_stream, device="meta")
        self._window = window
        self._chunk_tokens = chunk_tokens
        self.num_streams = 0

    def fill(self, num_streams: int) -> None:
        """Opens streams with one chunk each until `num_streams` are open."""
        for _ in range(self.num_streams, num_streams):
            self._commit(self._open())
        self.num_streams = num_streams

    def time_one_chunk(self) -> dict[str, float]:
        """Microseconds of every operation on one more stream; leaves the pool as it was."""
        seconds: dict[str, float] = {}

        @contextmanager
        def timed(operation: str) -> Iterator[None]:
            started = time.perf_counter()
            yield
            seconds[operation] = time.perf_counter() - started

        with timed("open"):
            stream = self._open()
        with timed("commit"):
            self._commit(stream)
        with timed("fork"):
            twin = self._manager.fork(stream)
        with timed("release fork"):
            self._manager.release(twin)
        with timed("release"):
            self._manager.release(stream)
        return {operation: 1e6 * value for operation, value in seconds.items()}

    def check(self) -> None:
        """Raises IntegrityError if the bookkeeping that was timed is wrong."""
        self._manager.check()

    def _open(self) -> Stream:
        return self._manager.open(self._window, self._chunk_tokens)

    def _commit(self, stream: Stream) -> None:
        with self._manager.transaction([QueryRange(stream, commit=True)]) as plan:
            for pending in plan.pending:
                pending.layers_written.update(range(self._manager.spec.num_layers))


def measure(arguments: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Median microseconds by number of streams and operation."""
    shape = KVShape(arguments.layers, arguments.heads, arguments.head_dim)
    counts = sorted(arguments.streams)
    pool = Pool(shape, arguments.tokens, Window(sink_chunks=1, recent_chunks=6), counts[-1])
    results = {}
    for num_streams in counts:
        pool.fill(num_streams)
        pool.time_one_chunk()  # warms up
        runs = [pool.time_one_chunk() for _ in range(arguments.repetitions)]
        results[num_streams] = {operation: median(run[operation] for run in runs) for operation in OPERATIONS}
    pool.check()
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON file."""
    parser = make_parser("pool", __doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=4680, help="tokens of a chunk")
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    results = measure(arguments)
    shape = KVShape(arguments.layers, arguments.heads, arguments.head_dim)
    pages = shape.chunk_pages(arguments.tokens, StreamCodecs("int2").steady)
    print(f"microseconds for one chunk of {pages} pages, medians of {arguments.repetitions}\n")
    fewest, most = min(results), max(results)
    growth = {operation: results[most][operation] / results[fewest][operation] for operation in OPERATIONS}
    rows = [(str(n), *(f"{times[operation]:.1f}" for operation in OPERATIONS)) for n, times in results.items()]
    rows.append((f"{most} / {fewest}", *(f"{growth[operation]:.2f}" for operation in OPERATIONS)))
    print(format_table(("streams", *OPERATIONS), rows))
    microseconds = {str(num_streams): times for num_streams, times in results.items()}
    write_report(arguments, "pool", {"pages": pages, "microseconds": microseconds, "growth": growth})


if __name__ == "__main__":
    main()
