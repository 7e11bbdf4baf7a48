"""Which correction suits which content: kinds of tokens, and persistence from frame to frame?

Ten minutes on one core. Synthetic worlds (lib/samples.py) have four cached chunks, which the queries of the next chunk
read, at a distance of one to four chunks. The demo model's own queries, keys and values are measured too. Keys and
values both come from storage; the reference is float64 attention over unquantized ones. Means over videos, heads and
queries:

dP      shift of the attention mass on all cached keys
|dP|    mean of its magnitude over the heads
error   relative error of the attention output
alpha   mean factor of `measured`, over chunks and heads

off, formula, variance, measured: as in the package. log Z: `measured` with a fit to the shift of log Z, as in earlier
versions (lib/corrections.py). The JSON file also has the mass shift of every chunk.

    python benchmarks/correction_worlds.py
    python benchmarks/correction_worlds.py --kinds "full rank" --persistence 0 1 --codecs int2 --videos 4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lib.attention_error import QUERY_STRIDE, store
from lib.corrections import CORRECTIONS, Readout
from lib.quality import draw_tasks
from lib.report import format_table, make_parser, note, use_threads, write_report
from lib.samples import Sample, Traits, capture, draw_video
from lib.schemes import Scheme, paged, paged_scheme
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.spec import PageFormat
from pagedvid.models.demo.weights import load_demo

SHOWN = ("off", "formula", "variance", "log Z", "measured")
CACHED_CHUNKS = 4
DIGITS = 5
DEMO = "demo model"


@dataclass(frozen=True)
class World:
    """A kind of synthetic content of any persistence."""

    traits: Traits
    num_frames: int = 3
    frame_tokens: int = 195


WORLDS = {
    "full rank": World(Traits(rank=64, persistence=0.0, unstructured=0.0)),
    "outlier channels": World(Traits(rank=32, persistence=0.0, outlier_channels=4)),
    "low rank": World(Traits(rank=6, persistence=0.0)),
    "heavy tails": World(Traits(rank=32, persistence=0.0, tail_freedom=3.0)),
    "alike neighbours": World(Traits(rank=64, persistence=0.0, unstructured=0.0, likeness=3.0)),
    "eight frames": World(Traits(rank=64, persistence=0.0, unstructured=0.0), num_frames=8, frame_tokens=73),
    "one frame": World(Traits(rank=64, persistence=0.0, unstructured=0.0), num_frames=1),
}


def world_videos(kind: str, persistence: float, num_videos: int, seed: int) -> list[Sample]:
    """Videos of one world."""
    world = WORLDS[kind]
    traits = replace(world.traits, persistence=persistence)
    shape = (CACHED_CHUNKS, world.num_frames, world.frame_tokens)
    return [draw_video(traits, kind, seed + i, 64, *shape) for i in range(num_videos)]


def demo_videos(num_videos: int, seed: int) -> list[Sample]:
    """All layers of videos of the demo model; every second one has half as many cached chunks."""
    model = load_demo()
    samples: list[Sample] = []
    for number, task in enumerate(draw_tasks(num_videos, seed)):
        num_chunks = CACHED_CHUNKS // (1 + number % 2)
        samples += capture(model, task.request.prompt, task.request.seed, num_chunks)
    return samples


def scheme_of(codec: str, sample: Sample) -> Scheme:
    """Storage in pages, with a codec."""
    _, num_heads, _, head_dim = sample.k_CHTD.shape
    codecs = paged(codec, head_dim)
    page = PageFormat(head_dim, codecs.rows)
    return paged_scheme(codecs, page, CodecBook(page, num_heads))


def measure(samples: Sequence[Sample], codec: str) -> dict[str, dict[str, Any]]:
    """By correction: "dP", "|dP|", "error", "alpha", and "dP of chunks" (oldest first, of videos with all chunks)."""
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in SHOWN}
    for sample in samples:
        readout = store(scheme_of(codec, sample), sample)
        for number in range(len(sample.q_LHTD)):
            for name, values in read(readout, number).items():
                found[name].append(values)
    return {name: _summary(values) for name, values in found.items()}


def read(readout: Readout, number: int) -> dict[str, dict[str, Tensor]]:
    """For the queries of one forward, by correction: "dP" [C, H] of every chunk, "error" [H], "alpha"."""
    sample, stored = readout.sample, readout.stored
    q = sample.rotated(sample.q_LHTD[number], -1)[:, ::QUERY_STRIDE]
    current_k, current_v = sample.rotated(sample.current_k_LHTD[number], -1), sample.current_v_LHTD[number]

    def attend(k_CHTD: Tensor, v_CHTD: Tensor, shift_CHQ1: Tensor | float) -> tuple[Tensor, Tensor]:
        scores = readout.scale * q.double() @ k_CHTD.double().mT - shift_CHQ1
        own = readout.scale * q.double() @ current_k.double().mT
        weights = torch.cat([*scores, own], dim=-1).softmax(-1)
        masses = torch.stack([part.sum(-1) for part in weights.split(k_CHTD.shape[2], dim=-1)[: len(k_CHTD)]])
        return weights @ torch.cat([*v_CHTD, current_v], dim=1).double(), masses

    exact, exact_masses = attend(readout.exact_k_CHTD, sample.v_CHTD, 0.0)
    b = CORRECTIONS["variance" if stored.square_step_size_CHTD is None else "formula"](readout, q)
    results = {}
    for name in SHOWN:
        shift = torch.zeros_like(b) if name == "off" else CORRECTIONS[name](readout, q)
        out, masses = attend(stored.k_CHTD, stored.v_CHTD, shift.double())
        error = (out - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        factor = (shift / b.where(b != 0, 1.0)).mean()
        results[name] = {"dP": (masses - exact_masses).mean(-1), "error": error, "alpha": factor}
    return results


def _summary(values: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    by_head = torch.cat([value["dP"].sum(0) for value in values])
    by_chunk = torch.stack([value["dP"].mean(1) for value in values if len(value["dP"]) == CACHED_CHUNKS]).mean(0)
    return {
        "dP": round(float(by_head.mean()), DIGITS),
        "|dP|": round(float(by_head.abs().mean()), DIGITS),
        "error": round(float(torch.cat([value["error"] for value in values]).mean()), DIGITS),
        "alpha": round(float(torch.stack([value["alpha"] for value in values]).mean()), DIGITS),
        "dP of chunks": [round(float(x), DIGITS) for x in by_chunk],
    }


def table(rows: Sequence[dict[str, Any]], quantity: str, sign: str = "") -> str:
    """One row per world, one column per correction, and the mean magnitude of each column."""
    lines = [
        (row["kind"], row["persistence"], *(f"{row['results'][name][quantity]:{sign}.4f}" for name in SHOWN))
        for row in rows
    ]
    sizes = (sum(abs(row["results"][name][quantity]) for row in rows) / len(rows) for name in SHOWN)
    return format_table(("content", "persists", *SHOWN), [*lines, ("mean size", "", *(f"{x:.4f}" for x in sizes))])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = make_parser("correction_worlds", __doc__)
    parser.add_argument("--kinds", nargs="*", choices=[*WORLDS, DEMO], default=[*WORLDS, DEMO])
    parser.add_argument("--persistence", nargs="+", type=float, default=[0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0])
    parser.add_argument("--codecs", nargs="+", default=["int2", "token2-g64", "int4"], help="with uniform levels")
    parser.add_argument("--videos", type=int, default=16, help="videos of each world")
    parser.add_argument("--demo-videos", type=int, default=8)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes the JSON file."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    results: dict[str, list[dict[str, Any]]] = {codec: [] for codec in arguments.codecs}
    with torch.no_grad():
        for kind in arguments.kinds:
            for persistence in [None] if kind == DEMO else arguments.persistence:
                note(f"{kind} {'' if persistence is None else persistence}")
                if persistence is None:
                    samples = demo_videos(arguments.demo_videos, arguments.seed)
                else:
                    samples = world_videos(kind, persistence, arguments.videos, arguments.seed)
                for codec, rows in results.items():
                    shown = "" if persistence is None else f"{persistence:g}"
                    rows.append({"kind": kind, "persistence": shown, "results": measure(samples, codec)})
    for codec, rows in results.items():
        for quantity, sign in (("dP", "+"), ("|dP|", ""), ("error", ""), ("alpha", "")):
            print(f"\n{codec}: {quantity}\n\n{table(rows, quantity, sign)}")
    write_report(arguments, "correction_worlds", results)


if __name__ == "__main__":
    main()
