"""What does it cost on a GPU to store one layer of a chunk: encoding keys and values, and measuring the correction?

`kernels` is the store of the GPU backends, `torch` the codecs' own operations on the same device; one layer in the
shapes of real models. `/ denoising` is the share of the chunk's attention in all its denoise steps, over itself and six
cached chunks. That attention is measured with the fastest dense library; the true share is smaller, since linear layers
and decoding the history take time too. No result is recorded yet.

    python benchmarks/commit.py --device cuda
    python benchmarks/commit.py --device cpu --shapes tiny
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from lib.layers import REAL_SHAPES, SHAPES, LayerInputs, LayerShape, dense_call, layer_cache
from lib.measuring import seconds_on
from lib.report import format_table, make_parser, name_after_device, use_threads, write_report
from pagedvid.attention.commit_correction import Writing
from pagedvid.attention.dense.choice import provider_reasons
from pagedvid.attention.measure import MEASURED_QUERIES
from pagedvid.attention.rotation import Readers, Rotation
from pagedvid.attention.store import LayerStore
from pagedvid.cache.window import Window

CACHED_CHUNKS = 6


def store_seconds(
    store: str, shape: LayerShape, codec: str, correction: str, rounds: int, device: torch.device, seed: int
) -> list[float]:
    """Seconds to store a layer, once per round; one more layer warms up."""
    window = Window(sink_chunks=0, recent_chunks=1)
    cache = layer_cache(shape, codec, window, device, num_layers=rounds + 1, correction=correction)
    spec = cache.spec
    stream = cache.open(window, shape.chunk_tokens)
    inputs = LayerInputs(shape, device, seed)
    q, k, v = inputs.draw(shape.chunk_tokens)
    sampled = torch.arange(MEASURED_QUERIES, device=device) * (shape.chunk_tokens - 1) // (MEASURED_QUERIES - 1)
    readers = Readers(inputs.rotated(q, 0)[sampled], inputs.rotated(q, shape.chunk_tokens)[sampled], 0, sampled)
    writer = cache.backend.store if store == "kernels" else LayerStore(cache.pool, cache.spec, cache.book, False)
    with cache.commit([stream]) as step:
        writings = [Writing(pending, readers, k, v) for pending in step.plan.pending]
        rotation = Rotation.of(step.plan, spec, inputs.rope, writer.ropes)
        seconds = [
            seconds_on(device, lambda: writer.write(layer, writings, rotation))  # noqa: B023
            for layer in range(spec.num_layers)
        ]
    return seconds[1:]


def denoise_seconds(shape: LayerShape, device: torch.device, rounds: int, seed: int) -> float:
    """Seconds of attention in all denoise steps of a chunk, with the fastest library on dense keys."""
    usable = [name for name, why in provider_reasons(device, torch.bfloat16, shape.head_dim).items() if not why]
    medians = []
    for provider in usable:
        call = dense_call(provider, LayerInputs(shape, device, seed), CACHED_CHUNKS, 1, device)
        medians.append(median([seconds_on(device, call) for _ in range(rounds + 1)][1:]))
    return shape.denoise_steps * min(medians)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per shape, codec, correction and store."""
    device = torch.device(arguments.device)
    rows = []
    for name in arguments.shapes:
        shape = SHAPES[name]
        denoising = denoise_seconds(shape, device, arguments.rounds, arguments.seed)
        for codec in arguments.codecs:
            for correction in arguments.corrections:
                for store in ("kernels", "torch") if device.type == "cuda" else ("torch",):
                    seconds = store_seconds(store, shape, codec, correction, arguments.rounds, device, arguments.seed)
                    given_bytes = 2 * 2 * shape.chunk_tokens * shape.kv_heads * shape.head_dim
                    rows.append(
                        {
                            "shape": name,
                            "codec": codec,
                            "correction": correction,
                            "store": store,
                            "seconds": seconds,
                            "median_seconds": median(seconds),
                            "given_gigabytes_per_second": given_bytes / median(seconds) / 1e9,
                            "over_denoising": median(seconds) / denoising,
                        }
                    )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes a JSON file named after the device."""
    parser = make_parser("commit", __doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=REAL_SHAPES)
    parser.add_argument("--codecs", nargs="+", default=["int2", "klt1.5/klt3", "bf16"])
    parser.add_argument("--corrections", nargs="+", default=["off", "measured"])
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    device_name = name_after_device(arguments, "commit")
    rows = measure(arguments)
    print(
        format_table(
            ("shape", "codec", "correction", "store", "median ms", "GB/s", "/ denoising"),
            [
                (
                    row["shape"],
                    row["codec"],
                    row["correction"],
                    row["store"],
                    f"{1e3 * row['median_seconds']:.3f}",
                    f"{row['given_gigabytes_per_second']:.1f}",
                    f"{100 * row['over_denoising']:.2f} %",
                )
                for row in rows
            ],
        )
    )
    write_report(arguments, "commit", {"device": device_name, "rows": rows})


if __name__ == "__main__":
    main()
