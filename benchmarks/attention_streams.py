"""How fast is attention over pages on a GPU, by model, codec, backend, length of the history and number of streams?

One layer in the shapes of real models. `attention.py --device cuda` runs this. No result is recorded yet.

paged   `step.attend` in a denoise step, with every backend and codec: planning, rotation of the queries and the current
        keys, history, correction (the mode that suits the codec), merge. Tables are cached, as from the second denoise
        step of a chunk on.
dense   one call of each library that can run here, over all keys as a dense BF16 tensor, already rotated

Every round runs all cases of a shape. The table shows medians, the median of the ratio to the fastest dense call within
each round, TFLOP/s (of the two matrix products alone), and the workspace: peak memory beyond inputs, pages and result,
in units of one chunk's K and V. The file is written anew after every table, so that a time limit loses one of them.

    python benchmarks/attention.py --device cuda
    python benchmarks/attention.py --device cuda --shapes wan-1.3b --chunks 6 --streams 1 --codecs int2 int4/int2 bf16
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lib.layers import REAL_SHAPES, SHAPES, LayerInputs, LayerShape, dense_call, layer_cache
from lib.measuring import interleaved, median_ratio, seconds_on, workspace_bytes
from lib.report import format_table, make_parser, name_after_device, save_report, use_threads, write_report
from pagedvid.attention.dense.choice import provider_reasons
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.window import Window

DENSE = "dense"


def paged_call(
    backend: str, codec: str, inputs: LayerInputs, num_chunks: int, num_streams: int, device: torch.device
) -> Callable[[], Tensor]:
    """A denoise step of one layer, for streams that have committed `num_chunks` chunks each."""
    shape = inputs.shape
    window = Window(sink_chunks=0, recent_chunks=max(1, num_chunks))
    cache = layer_cache(shape, codec, window, device, num_streams=num_streams, backend=backend)
    streams = [cache.open(window, shape.chunk_tokens) for _ in range(num_streams)]
    for _ in range(num_chunks):
        for stream in streams:
            with cache.commit([QueryRange(stream, visible=())]) as step:
                step.attend(0, *inputs.draw(shape.chunk_tokens), inputs.rope)
    current = inputs.draw(num_streams * shape.chunk_tokens)

    def attend() -> Tensor:
        with cache.denoise(streams) as step:
            return step.attend(0, *current, inputs.rope)

    return attend


def cases(
    arguments: argparse.Namespace, shape: LayerShape, num_chunks: int, num_streams: int, device: torch.device
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Every usable library on dense keys, then every backend with every codec."""
    for provider, reasons in provider_reasons(device, torch.bfloat16, shape.head_dim).items():
        if not reasons:
            inputs = LayerInputs(shape, device, arguments.seed)
            yield f"{DENSE} {provider}", dense_call(provider, inputs, num_chunks, num_streams, device)
    for backend in arguments.backends:
        for codec in arguments.codecs:
            inputs = LayerInputs(shape, device, arguments.seed)
            yield f"{backend} {codec}", paged_call(backend, codec, inputs, num_chunks, num_streams, device)


def measure(arguments: argparse.Namespace, name: str, num_chunks: int, num_streams: int) -> list[dict[str, Any]]:
    """One row per case."""
    shape, device = SHAPES[name], torch.device(arguments.device)
    calls = dict(cases(arguments, shape, num_chunks, num_streams, device))
    workspace = {case: workspace_bytes(device, call) for case, call in calls.items()}  # warms up
    seconds = interleaved({case: partial(seconds_on, device, call) for case, call in calls.items()}, arguments.rounds)
    fastest = min((case for case in calls if case.startswith(DENSE)), key=lambda case: median(seconds[case]))
    num_keys = (num_chunks + 1) * shape.chunk_tokens
    operations = 4 * num_streams * shape.chunk_tokens * num_keys * shape.query_heads * shape.head_dim
    chunk_bytes = 2 * 2 * shape.chunk_tokens * shape.kv_heads * shape.head_dim
    return [
        {
            "shape": name,
            "chunks": num_chunks,
            "streams": num_streams,
            "case": case,
            "seconds": seconds[case],
            "median_seconds": median(seconds[case]),
            "ratio_to_fastest_dense": median_ratio(seconds[case], seconds[fastest]),
            "tflops": operations / median(seconds[case]) / 1e12,
            "workspace_bytes": workspace[case],
            "workspace_over_chunk_kv": None if workspace[case] is None else workspace[case] / chunk_bytes,
        }
        for case in calls
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The cases of one shape, history and number of streams."""
    first = rows[0]
    cells = [
        (
            row["case"],
            f"{1e3 * row['median_seconds']:.3f}",
            f"{row['ratio_to_fastest_dense']:.3f}",
            f"{row['tflops']:.1f}",
            "-" if row["workspace_over_chunk_kv"] is None else f"{row['workspace_over_chunk_kv']:.2f}",
        )
        for row in rows
    ]
    title = f"\n{first['shape']}, {first['chunks']} cached chunks, {first['streams']} streams\n"
    return title + format_table(("case", "median ms", "/ dense", "TFLOP/s", "workspace / chunk"), cells)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes a JSON file named after the device."""
    parser = make_parser("attention", __doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=REAL_SHAPES)
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 1, 3, 6, 12], help="cached chunks")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--backends", nargs="+", default=["triton"])
    parser.add_argument("--codecs", nargs="+", default=["int2", "klt1.5/klt3"])
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    device_name = name_after_device(arguments, "attention")
    rows = []
    for name in arguments.shapes:
        for num_chunks in arguments.chunks:
            for num_streams in arguments.streams:
                found = measure(arguments, name, num_chunks, num_streams)
                print(table(found), flush=True)
                rows += found
                save_report(arguments, "attention", {"gpu": device_name, "rows": rows})
    write_report(arguments, "attention", {"gpu": device_name, "rows": rows})


if __name__ == "__main__":
    main()
