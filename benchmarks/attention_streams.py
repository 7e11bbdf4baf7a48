"""Paged attention of several streams over histories of several lengths, against dense BF16 flash attention of the
same tokens: `benchmarks/attention.py --device cuda` runs this. One layer; shapes of real models (layer_shapes.py).

paged   `step.attend` in a denoise step, with each backend and codec: planning, rotation of queries and current keys,
        history, correction (the mode that suits the codec), merge; tables are found again as in the second denoise
        step of a chunk
dense   one call of the fastest library that can run here, over all keys, which lie there in BF16, rotated, contiguous

All cases of a shape run once per round; printed are medians, and the median of the ratio inside each round. TFLOP/s
count the two products alone. Workspace is the peak beyond inputs, pages and result, per K and V of one chunk.

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

from layer_cache import layer_cache
from layer_shapes import SHAPES, LayerInputs, LayerShape, seconds_on, workspace_bytes
from pagedvid.attention.dense.choice import create_provider, provider_reasons
from pagedvid.attention.dense.ragged import Ragged
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.window import Window
from report import FOLDER, format_table, interleaved, make_parser, median_ratio, use_threads, write_report

DENSE = "dense"


def dense_call(
    provider: str, inputs: LayerInputs, num_chunks: int, num_streams: int, device: torch.device
) -> Callable[[], Tensor]:
    """Attention of the streams' current chunks over all their keys."""
    shape = inputs.shape
    num_keys = (num_chunks + 1) * shape.chunk_tokens
    queries, keys, values = [], [], []
    for _ in range(num_streams):
        q, k, v = inputs.draw(num_keys)
        queries.append(inputs.turned(q, 0)[-shape.chunk_tokens :])
        keys.append(inputs.turned(k, 0))
        values.append(v)
    q, k, v = (torch.cat(parts) for parts in (queries, keys, values))
    ragged = Ragged.of([shape.chunk_tokens] * num_streams, [num_keys] * num_streams, device)
    attend = create_provider(provider)
    return lambda: attend(q, k, v, ragged, shape.head_dim**-0.5)[0]


def paged_call(
    backend: str, codec: str, inputs: LayerInputs, num_chunks: int, num_streams: int, device: torch.device
) -> Callable[[], Tensor]:
    """A denoise step of one layer, of streams that have committed `num_chunks` chunks each."""
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


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON file with the device's name."""
    parser = make_parser("attention_cuda", __doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[name for name in SHAPES if name != "tiny"])
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 1, 3, 6, 12], help="cached chunks")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--backends", nargs="+", default=["scratch", "fused"])
    parser.add_argument("--codecs", nargs="+", default=["int2", "klt1.5/klt3"])
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    rows = []
    for name in arguments.shapes:
        for num_chunks in arguments.chunks:
            for num_streams in arguments.streams:
                rows += measure(arguments, name, num_chunks, num_streams)
                print(_table(rows[-1], rows), flush=True)
    device = torch.device(arguments.device)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if arguments.out == FOLDER / "results" / "attention_cuda.json":
        arguments.out = arguments.out.with_name(f"attention_{device_name.replace(' ', '_').lower()}.json")
    write_report(arguments, "attention", {"gpu": device_name, "rows": rows})


def _table(last: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The cases of the last shape, history and number of streams."""
    same = ("shape", "chunks", "streams")
    shown = [row for row in rows if all(row[key] == last[key] for key in same)]
    title = f"\n{last['shape']}, {last['chunks']} cached chunks, {last['streams']} streams\n"
    headers = ("case", "median ms", "/ dense", "TFLOP/s", "workspace / chunk")
    return title + format_table(
        headers,
        [
            (
                row["case"],
                f"{1e3 * row['median_seconds']:.3f}",
                f"{row['ratio_to_fastest_dense']:.3f}",
                f"{row['tflops']:.1f}",
                "-" if row["workspace_over_chunk_kv"] is None else f"{row['workspace_over_chunk_kv']:.2f}",
            )
            for row in shown
        ],
    )


if __name__ == "__main__":
    main()
