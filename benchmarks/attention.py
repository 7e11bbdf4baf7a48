"""What does attention over pages cost on a CPU, in time and memory, against a dense BF16 call of the same shape?

Three minutes with the defaults. With --device cuda it runs attention_streams.py: many shapes, histories and streams.

paged   `step.attend` in a denoise step: planning, rotary tables, rotation of the queries and the current keys, and for
        every cached chunk decode, rotate, attend, correct (mode "measured"), merge
dense   one `scaled_dot_product_attention` over the keys of all chunks as one contiguous BF16 tensor, already rotated:
        the least that any dense cache pays

The default is one layer of Wan-1.3B: 12 heads x 128, 4680 queries, 6 cached chunks of 4680 tokens. Some key channels
are large, as in real keys, so that the exact form of the correction is needed. Every round runs all cases; the table
shows medians, and the median of the ratio within each round.

Extra memory is the peak of all tensor bytes alive during the call beyond its inputs and its output: scratch, tables and
temporaries of the first layer of a step with a new backend. Compare it with one chunk's K and V in BF16.

    python benchmarks/attention.py --device cpu
    python benchmarks/attention.py --codecs int2 int4 int8 bf16 --rounds 9
    python benchmarks/attention.py --device cuda
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import attention_streams
from lib.measuring import extra_bytes, interleaved, median_ratio, seconds_of
from lib.report import format_table, make_parser, use_threads, write_report
from pagedvid.attention.backend import select_backend
from pagedvid.attention.scratch import CPU_BYTES
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import stream_bytes
from pagedvid.cache.window import Window
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.grid_rotary import GridRotary
from pagedvid.rotary.tables import rotate
from pagedvid.units import format_bytes, parse_bytes

DENSE = "dense bf16"
NUM_LARGE_CHANNELS = 4
LARGE_CHANNEL_FACTOR = 8.0


def line_rotary(head_dim: int) -> GridRotary:
    """One-dimensional rotary embedding, for chunks of any number of tokens; no tables are kept from call to call."""
    frequencies = 10000.0 ** -torch.linspace(0, 1, head_dim // 2, dtype=torch.float32)
    return GridRotary.of_sequence(frequencies, "half", num_cached=0)


@dataclass(frozen=True)
class Inputs:
    """q, k, v of each chunk before rotary embedding, BF16 [tokens, heads, head_dim]; the last chunk is current."""

    rope: GridRotary
    chunks: tuple[tuple[Tensor, Tensor, Tensor], ...]

    @staticmethod
    def draw(num_heads: int, head_dim: int, chunk_tokens: int, num_chunks: int, seed: int) -> Inputs:
        """Normally distributed; some key channels are large."""
        generator = torch.Generator().manual_seed(seed)
        channel_factor = torch.ones(head_dim)
        channel_factor[torch.randperm(head_dim, generator=generator)[:NUM_LARGE_CHANNELS]] = LARGE_CHANNEL_FACTOR

        def draw() -> Tensor:
            return torch.randn(chunk_tokens, num_heads, head_dim, generator=generator)

        chunks = [(draw(), draw() * channel_factor, draw()) for _ in range(num_chunks + 1)]
        return Inputs(line_rotary(head_dim), tuple((q.bfloat16(), k.bfloat16(), v.bfloat16()) for q, k, v in chunks))

    def dense_call(self) -> Callable[[], Tensor]:
        """Attention of the last chunk's queries over the keys of all chunks: [1, heads, tokens, head_dim]."""
        q, k, v = (torch.cat(parts).transpose(0, 1) for parts in zip(*self.chunks, strict=True))
        cos, sin = self.rope.tables(0, q.shape[1])
        q, k = (rotate(x.float(), cos, sin).bfloat16() for x in (q, k))
        q = q[:, -len(self.chunks[-1][0]) :]
        q, k, v = (x.contiguous().unsqueeze(0) for x in (q, k, v))
        return lambda: F.scaled_dot_product_attention(q, k, v)


class PagedLayer:
    """Attention of the last chunk over a one-layer cache that has committed the others."""

    def __init__(self, inputs: Inputs, codec: str, scratch: int) -> None:
        self._inputs = inputs
        self._scratch = scratch
        chunk_tokens, num_heads, head_dim = inputs.chunks[0][0].shape
        window = Window(sink_chunks=0, recent_chunks=len(inputs.chunks) - 1)
        spec = CacheSpec(1, num_heads, head_dim, codecs=StreamCodecs(codec))
        self._cache = PagedKVCache(spec, stream_bytes(spec.shape, window, spec.codecs, chunk_tokens), scratch=scratch)
        self._stream = self._cache.open(window, chunk_tokens)
        for q, k, v in inputs.chunks[:-1]:
            with self._cache.commit([QueryRange(self._stream, visible=())]) as step:
                step.attend(0, q, k, v, inputs.rope)

    def attend(self) -> Tensor:
        """A denoise step of one layer: [tokens, heads, head_dim]."""
        with self._cache.denoise([self._stream]) as step:
            return step.attend(0, *self._inputs.chunks[-1], self._inputs.rope)

    def extra_bytes(self) -> int:
        """Extra memory of `attend` with a new backend, which has to allocate its scratch."""
        cache = self._cache
        cache.backend = select_backend(cache.backend.name, cache.pool, cache.spec, cache.book, self._scratch)
        return extra_bytes(self.attend)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for the dense call, then one per codec."""
    inputs = Inputs.draw(arguments.heads, arguments.head_dim, arguments.tokens, arguments.chunks, arguments.seed)
    layers = {codec: PagedLayer(inputs, codec, arguments.scratch) for codec in arguments.codecs}
    dense = inputs.dense_call()
    extra = {DENSE: extra_bytes(dense), **{codec: layer.extra_bytes() for codec, layer in layers.items()}}  # warms up
    calls = {DENSE: dense, **{codec: layer.attend for codec, layer in layers.items()}}
    seconds = interleaved({case: partial(seconds_of, call) for case, call in calls.items()}, arguments.rounds)
    chunk_bytes = KVShape(1, arguments.heads, arguments.head_dim).bf16_bytes(arguments.tokens)
    return [
        {
            "case": case,
            "seconds": seconds[case],
            "median_seconds": median(seconds[case]),
            "ratio_to_dense": median_ratio(seconds[case], seconds[DENSE]),
            "extra_bytes": extra[case],
            "extra_over_chunk_kv": extra[case] / chunk_bytes,
        }
        for case in calls
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON file."""
    given = list(sys.argv[1:] if argv is None else argv)
    if "cuda" in given or "--device=cuda" in given:
        attention_streams.main(given)
        return
    parser = make_parser("attention", __doc__)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: see attention_streams.py --help"
    )
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=4680, help="tokens of a chunk, cached and current")
    parser.add_argument("--chunks", type=int, default=6, help="cached chunks")
    parser.add_argument("--codecs", nargs="+", default=["int2"], metavar="CODEC", help="such as int4 or int4/int2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=parse_bytes, default=CPU_BYTES, help="see attention.scratch")
    arguments = parser.parse_args(given)
    use_threads(arguments.threads)
    rows = measure(arguments)
    print(
        f"one layer, {arguments.heads} heads x {arguments.head_dim}, {arguments.tokens} queries over "
        f"{arguments.chunks} cached chunks and the current one;\n"
        f"{arguments.rounds} rounds on {torch.get_num_threads()} threads\n"
    )
    print(
        format_table(
            ("keys and values", "median s", "/ dense", "extra memory", "/ one chunk's K and V"),
            [
                (
                    str(row["case"]),
                    f"{row['median_seconds']:.3f}",
                    f"{row['ratio_to_dense']:.3f}",
                    format_bytes(row["extra_bytes"]),
                    f"{row['extra_over_chunk_kv']:.2f}",
                )
                for row in rows
            ],
        )
    )
    write_report(arguments, "attention", {"rows": rows})


if __name__ == "__main__":
    main()
