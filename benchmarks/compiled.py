"""What does `model.compile` save in a denoise step, and what does compiling cost?

Two networks make forwards over a paged history, plain and compiled: that of the built-in model, and a Wan transformer
of published width with fewer blocks and random weights. Both read two committed chunks in bf16 pages.

    ranges          packed into one forward, each a chunk of a video of its own
    plain, compiled seconds of a forward, attention included: median over rounds in which both run in turn. On a CPU
                    they are of processor time, which other programs disturb less, and all threads together
    ratio           compiled / plain, median over the rounds of the ratio within each
    error           relative difference of the two predictions
    graphs          that were compiled for all forwards of the network, in so many seconds by the clock. They are spent
                    once: the first forward of a single range compiles one, that of several ranges another

    python benchmarks/compiled.py --threads 1
    python benchmarks/compiled.py --device cuda --dtype bfloat16 --blocks 30 --rows 60
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lib.measuring import median_ratio
from lib.report import format_table, make_parser, name_after_device, note, use_threads, write_report
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.config.sections import DTYPES, ModelConfig
from pagedvid.engine.schedule import Range
from pagedvid.models.registry import model_spec
from pagedvid.networks.compiled import compile_blocks, require_compiler
from pagedvid.paged_kv_cache import PagedKVCache

CLASS = "WanTransformer3DModel"
WIDTH = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
"""Of the 1.3B model."""
PROMPT = "a large red circle moving left on a black background"
NUM_COMMITTED = 2
LEVEL = 0.9
"""Of noise, in the denoise step."""


class Forwards:
    """Forwards of one network over a history, with as many ranges as are asked for."""

    def __init__(self, name: str, model: Any, inputs: dict[str, Any], num_streams: int, device: str) -> None:
        geometry = model.geometry
        spec = CacheSpec(geometry.num_layers, geometry.num_kv_heads, geometry.head_dim, codecs=StreamCodecs("bf16"))
        self.name, self.model = name, model
        self._cache = PagedKVCache(spec, "1GiB", device)
        window = Window(0, NUM_COMMITTED, positions=model.positions)
        self._streams = [self._cache.open(window, geometry.chunk_tokens) for _ in range(num_streams)]
        self._condition = model.prepare(PROMPT, inputs, 1)
        for number in range(NUM_COMMITTED):
            for stream in self._streams:
                with self._cache.commit([stream]) as step:
                    self._forward(step, [number], 0.0)

    def __call__(self, num_ranges: int) -> Tensor:
        """A denoise step of so many streams."""
        with self._cache.denoise(self._streams[:num_ranges]) as step:
            return self._forward(step, [NUM_COMMITTED + number for number in range(num_ranges)], LEVEL)

    def _forward(self, step: Any, seeds: Sequence[int], level: float) -> Tensor:
        latents = torch.cat([self.model.initial_latents(self._condition, seed, 0) for seed in seeds])
        ranges = [Range(range(self.model.geometry.frames_per_chunk), level)] * len(seeds)
        attend = partial(step.attend, rope=self.model.rope)
        return self.model.forward(latents, ranges, [self._condition] * len(seeds), attend)


def pair(name: str, load: Callable[[], Any], inputs: dict[str, Any], arguments: argparse.Namespace) -> list[Forwards]:
    """The plain network and one that will be compiled, with the same weights."""
    made = [Forwards(name, load(), inputs, max(arguments.ranges), arguments.device) for _ in range(2)]
    compile_blocks(made[1].model.blocks)
    return made


def demo(arguments: argparse.Namespace) -> list[Forwards]:
    config = ModelConfig(device=arguments.device, dtype=arguments.dtype)
    return pair("demo", lambda: model_spec(config).load([]), {}, arguments)


def wan(arguments: argparse.Namespace) -> list[Forwards]:
    """Through the loader of `pagedvid generate`."""
    torch.manual_seed(arguments.seed)
    size = {"height": 8 * arguments.rows, "width": 16 * arguments.rows}
    rows = {"embeddings": {"prompt_embeds": torch.randn(64, 4096)}}
    with tempfile.TemporaryDirectory() as folder:
        getattr(diffusers, CLASS)(**WIDTH, num_layers=arguments.blocks).save_pretrained(folder)
        config = ModelConfig("self-forcing", folder, device=arguments.device, dtype=arguments.dtype, **size)
        return pair("wan", lambda: model_spec(config).load([]), rows, arguments)


def seconds_of(forward: Callable[[], Tensor], device: str) -> float:
    """Of a call: of processor time on a CPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    forward()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return clock() - started


def measured(plain: Forwards, compiled: Forwards, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of ranges."""
    rows = []
    for num_ranges in arguments.ranges:
        graphs, started = counters["stats"]["unique_graphs"], time.perf_counter()
        other = compiled(num_ranges)
        first_seconds = time.perf_counter() - started
        exact = plain(num_ranges)
        seconds: dict[str, list[float]] = {"plain": [], "compiled": []}
        for number in range(arguments.rounds):
            for form, forwards in (("plain", plain), ("compiled", compiled)):
                seconds[form].append(seconds_of(partial(forwards, num_ranges), arguments.device))
            note(f"{plain.name}, {num_ranges} ranges, round {number + 1} of {arguments.rounds}")
        rows.append(
            {
                "network": plain.name,
                "ranges": num_ranges,
                "tokens": num_ranges * plain.model.geometry.chunk_tokens,
                "graphs": counters["stats"]["unique_graphs"] - graphs,
                "first_forward_seconds": first_seconds,
                "error": float((other - exact).norm() / exact.norm()),
                "ratio": median_ratio(seconds["compiled"], seconds["plain"]),
                "seconds": seconds,
            }
        )
    return rows


@torch.no_grad()
def main() -> None:
    parser = make_parser("compiled", __doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the models (default: float32)")
    parser.add_argument("--blocks", type=int, default=4, help="blocks of the Wan transformer (default: 4)")
    parser.add_argument(
        "--rows", type=int, default=16, help="rows of its latent frame, even; columns are twice as many"
    )
    parser.add_argument("--ranges", type=int, nargs="+", default=[1, 2, 4], help="of a forward (default: 1 2 4)")
    parser.add_argument("--rounds", type=int, default=7, help="forwards of each form (default: 7)")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    device_name = name_after_device(arguments, "compiled") if arguments.device != "cpu" else "cpu"
    require_compiler(torch.device(arguments.device))
    results = [row for make in (demo, wan) for row in measured(*make(arguments), arguments)]
    table = [
        (
            row["network"],
            str(row["ranges"]),
            str(row["tokens"]),
            f"{median(row['seconds']['plain']):.4f}",
            f"{median(row['seconds']['compiled']):.4f}",
            f"{row['ratio']:.2f}",
            f"{row['error']:.1e}",
            str(row["graphs"]),
            f"{row['first_forward_seconds']:.0f}",
        )
        for row in results
    ]
    headers = ("network", "ranges", "tokens", "plain", "compiled", "ratio", "error", "graphs", "first s")
    print(format_table(headers, table))
    write_report(arguments, "compiled", {"device": device_name, "rows": results})


if __name__ == "__main__":
    main()
