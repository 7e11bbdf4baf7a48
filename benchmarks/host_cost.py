"""What does one layer of a step cost the host in Python, and how many kernels does it launch, by streams and chunks?

Needs no GPU: kernels and the dense library are left out, so that only what the host does remains. A GPU is kept busy if
that is less than what its kernels take: at the shape of Wan-1.3B, 1.5 to 2.5 ms a layer on an H100.

    us        median time of `step.attend` from a chunk's second denoise step on, in microseconds; Triton's own launcher
              and the library come on top
    launches  kernels of pagedvid, calls of the dense library, and other operations that would run on the device

    python benchmarks/host_cost.py
    python benchmarks/host_cost.py --streams 1 16 --chunks 6 --codecs int2 bf16
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from lib.layers import SHAPES, layer_cache
from lib.report import format_table, make_parser, use_threads, write_report
from pagedvid.attention import backend
from pagedvid.attention.scratch import GPU_BYTES
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.window import Window
from pagedvid.rotary.grid_rotary import GridRotary

META = torch.device("meta")
"""Operations on its tensors, which have no contents, cost what the host does."""
CHUNK_TOKENS = 32
"""Their length does not matter either."""
WITHOUT_KERNEL = (
    "empty",
    "view",
    "reshape",
    "slice",
    "select",
    "expand",
    "transpose",
    "permute",
    "squeeze",
    "alias",
    "detach",
)
"""Parts of the names of operations that only make a tensor, or another view of one."""


class LeftOut:
    """Kernels and the dense library, counted in place of being run."""

    name = "none"
    head_major = False

    def __init__(self) -> None:
        self.launches = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        self.launches += 1
        return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)

    def launch(self, *_: Any, **__: Any) -> None:
        self.launches += 1


class Operations(TorchDispatchMode):
    """Counts operations that would launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2].strip("_")
        self.launches += not any(part in name for part in WITHOUT_KERNEL)
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_runs() -> Iterator[LeftOut]:
    """Kernels and the dense library are left out."""
    left_out = LeftOut()
    with (
        patch.object(JITFunction, "run", left_out.launch),
        patch.object(backend, "choose_provider", lambda *_: left_out),
        patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0)),
    ):
        yield left_out


def measure(codec: str, num_streams: int, num_chunks: int, repetitions: int) -> dict[str, Any]:
    """One row."""
    shape, device = SHAPES["wan-1.3b"], torch.device("cpu")
    window = Window(sink_chunks=0, recent_chunks=num_chunks)
    rope = GridRotary.from_theta((44, 42, 42), 4, 8, "interleaved")
    cache = layer_cache(shape, codec, window, device, num_streams=num_streams)
    streams = [cache.open(window, CHUNK_TOKENS) for _ in range(num_streams)]
    heads = (shape.query_heads, shape.kv_heads, shape.kv_heads)
    qkv = [torch.randn(num_streams * CHUNK_TOKENS, count, shape.head_dim).bfloat16() for count in heads]
    for _ in range(num_chunks):
        with cache.commit([QueryRange(stream, visible=()) for stream in streams]) as step:
            step.attend(0, *qkv, rope)
    cache.pool.records = cache.pool.records.to(META)
    qkv = [x.to(META) for x in qkv]
    with nothing_runs() as left_out:
        cache.backend = backend.AttentionBackend("triton", cache.pool, cache.spec, cache.book, GPU_BYTES)
        with cache.denoise(streams) as step:
            step.attend(0, *qkv, rope)
            seconds = []
            for _ in range(repetitions):
                started = time.perf_counter()
                step.attend(0, *qkv, rope)
                seconds.append(time.perf_counter() - started)
            left_out.launches = 0
            with Operations() as operations:
                step.attend(0, *qkv, rope)
    return {
        "codec": codec,
        "streams": num_streams,
        "chunks": num_chunks,
        "microseconds": 1e6 * median(seconds),
        "launches": left_out.launches + operations.launches,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON file."""
    parser = make_parser("host_cost", __doc__)
    parser.add_argument("--codecs", nargs="+", default=["int2", "bf16"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 6, 12])
    parser.add_argument("--repetitions", type=int, default=200)
    arguments: argparse.Namespace = parser.parse_args(argv)
    use_threads(arguments.threads)
    rows = [
        measure(codec, num_streams, num_chunks, arguments.repetitions)
        for codec in arguments.codecs
        for num_streams in arguments.streams
        for num_chunks in arguments.chunks
    ]
    cells = [
        (row["codec"], str(row["streams"]), str(row["chunks"]), f"{row['microseconds']:.0f}", str(row["launches"]))
        for row in rows
    ]
    print(format_table(("codec", "streams", "chunks", "us", "launches"), cells))
    write_report(arguments, "host_cost", {"rows": rows})


if __name__ == "__main__":
    main()
