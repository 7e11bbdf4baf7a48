"""Where do the corrections of whole chunks and of runs of pages differ, and what does the difference cost?

Ten minutes on one core. `CacheSpec.correction_unit` is "chunk" or "page": one b for each query and chunk, or one for
each run of neighbouring pages with about the same b. Videos whose scene changes inside a chunk (lib/changing_scenes.py)
are stored and read by the package itself, with values in bf16, so that keys alone err. The reference is float64
attention over unquantized keys. Means over heads, queries and seeds, with standard errors over the seeds:

error   relative error of the attention output
dP      shift of the attention mass on all cached keys, whose mean over queries is what alpha is fitted to
odds    mean shift of the log-odds of that mass, to which queries with little or nearly all of it count as well
runs    parts that have a b of their own, of each chunk; and how many pages it has
time    of `attend`, relative to "chunk": medians of interleaved rounds on one thread

off, chunk, page: as in the package. each: every page by itself, the most that can be had from pages. Two heads share
their runs in synthetic videos, three in those of the demo model, whose pages are made small (32 tokens of int2).

    python benchmarks/correction_unit.py
    python benchmarks/correction_unit.py --scenes cut "bright frame" --codecs int2 --seeds 4
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from lib.attention_error import relative_error
from lib.changing_scenes import NUM_CHUNKS, SCENES, demo_scenes, draw_scene
from lib.measuring import interleaved, median_ratio, seconds_of
from lib.report import format_table, make_parser, note, use_threads, write_report
from lib.samples import Sample
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import stream_bytes
from pagedvid.cache.window import Window
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.quality.metrics import mean_and_error

CASES = ("off", "chunk", "page", "each")
DEMO_SCENES = {"demo": False, "demo, a cut": True}
"""Whether videos are spliced."""
DEMO_PAGE_ROWS = 12
QUANTITIES = ("error", "dP", "odds", "runs")
DIGITS = 6
SMALLEST_MASS = 1e-9
WINDOW = Window(sink_chunks=0, recent_chunks=NUM_CHUNKS)
VALUES, MASS = 0, 1
"""Layers of the cache: with the sample's values, and with values that are 1 in cached chunks and 0 in the current."""


@dataclass(frozen=True)
class SampleRope:
    """The rotary tables of a sample. Satisfies `RopeTables`."""

    sample: Sample
    layout = "half"

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), float32 [num_tokens, D/2]."""
        tokens = slice(first_token, first_token + num_tokens)
        return self.sample.cos_CTP.flatten(0, 1)[tokens], self.sample.sin_CTP.flatten(0, 1)[tokens]


class StoredVideo:
    """A sample in a cache, under one correction."""

    def __init__(self, sample: Sample, codec: str, correction: str, case: str, page_rows: int | None) -> None:
        self.sample, self.rope = sample, SampleRope(sample)
        _, num_heads, self.num_tokens, head_dim = sample.k_CHTD.shape
        spec = CacheSpec(
            2,
            num_heads,
            head_dim,
            codecs=StreamCodecs(f"{codec}/bf16"),
            page_rows=page_rows,
            correction="off" if case == "off" else correction,
            correction_unit="chunk" if case in ("off", "chunk") else "page",
        )
        self.cache = PagedKVCache(spec, stream_bytes(spec.shape, WINDOW, spec.codecs, self.num_tokens))
        self.stream = self.cache.open(WINDOW, self.num_tokens)
        for q, k, v in zip(sample.commit_q_CHTD, sample.k_CHTD, sample.v_CHTD, strict=True):
            with self.cache.commit([QueryRange(self.stream, visible=())]) as step:
                for layer, values in ((VALUES, v), (MASS, torch.ones_like(v))):
                    step.attend(layer, *(x.transpose(0, 1) for x in (q, k, values)), self.rope)
        if case == "each":
            for chunk in self.stream.chunks():
                chunk.runs.update(dict.fromkeys((VALUES, MASS), self.pages))

    @property
    def pages(self) -> tuple[int, ...]:
        """Tokens of each page of a chunk's keys."""
        size = self.cache.spec.codecs.steady.of("keys", VALUES).page_tokens(self.cache.spec.shape.page)
        return tuple(min(size, self.num_tokens - first) for first in range(0, self.num_tokens, size))

    @property
    def num_runs(self) -> list[int]:
        """Of each chunk."""
        return [len(chunk.runs.get(VALUES, (0,))) for chunk in self.stream.chunks()]

    def attend(self, number: int, layer: int = VALUES) -> Tensor:
        """What the queries of one forward read, [H, T, D]."""
        sample = self.sample
        q, k, v = sample.q_LHTD[number], sample.current_k_LHTD[number], sample.current_v_LHTD[number]
        values = v if layer == VALUES else torch.zeros_like(v)
        with self.cache.denoise([self.stream]) as step:
            return step.attend(layer, *(x.transpose(0, 1) for x in (q, k, values)), self.rope).transpose(0, 1)


def exact_attention(sample: Sample, number: int) -> tuple[Tensor, Tensor]:
    """(out [H, T, D], mass on cached keys [H, T]) over unquantized keys, float64."""
    q = sample.rotated(sample.q_LHTD[number], -1).double()
    keys = [sample.rotated(k, chunk) for chunk, k in enumerate(sample.k_CHTD)]
    keys.append(sample.rotated(sample.current_k_LHTD[number], -1))
    weights = (q.shape[-1] ** -0.5 * q @ torch.cat(keys, dim=1).double().mT).softmax(-1)
    values = torch.cat([*sample.v_CHTD.bfloat16().float(), sample.current_v_LHTD[number]], dim=1)
    return weights @ values.double(), weights[..., : -q.shape[1]].sum(-1)


def measure(sample: Sample, codec: str, correction: str, page_rows: int | None) -> dict[str, dict[str, float]]:
    """By case the quantities of the tables, means over forwards and heads."""
    exact = [exact_attention(sample, number) for number in range(len(sample.q_LHTD))]
    found = {}
    for case in CASES:
        video = StoredVideo(sample, codec, correction, case, page_rows)
        errors, shifts, odds = [], [], []
        for number, (out, mass) in enumerate(exact):
            errors.append(float(relative_error(video.attend(number).double(), out).mean()))
            stored_mass = video.attend(number, MASS)[..., 0].double()
            shifts.append(float((stored_mass - mass).mean()))
            odds.append(float((stored_mass.logit(SMALLEST_MASS) - mass.logit(SMALLEST_MASS)).mean()))
        found[case] = {"error": mean(errors), "dP": mean(shifts), "odds": mean(odds), "runs": mean(video.num_runs)}
    return found


def measure_scene(
    seeds: Sequence[Sequence[Sample]], codec: str, correction: str, page_rows: int | None, rounds: int
) -> dict[str, Any]:
    """By quantity and case the means of every seed; the time of each case relative to "chunk"."""
    found: dict[str, dict[str, list[float]]] = {name: {case: [] for case in CASES} for name in QUANTITIES}
    for samples in seeds:
        layers = [measure(sample, codec, correction, page_rows) for sample in samples]
        for name, by_case in found.items():
            for case, values in by_case.items():
                values.append(round(mean(layer[case][name] for layer in layers), DIGITS))
    videos = {case: StoredVideo(seeds[0][-1], codec, correction, case, page_rows) for case in CASES[1:]}
    calls: dict[str, Callable[[], float]] = {
        case: partial(seconds_of, partial(video.attend, 0)) for case, video in videos.items()
    }
    seconds = interleaved(calls, rounds)
    times = {case: round(median_ratio(seconds[case], seconds["chunk"]), 3) for case in calls}
    return {**found, "pages": len(videos["page"].pages), "time": times}


def table(rows: dict[str, dict[str, Any]], quantity: str) -> str:
    """One row per scene; the last columns are means and standard errors of differences within a seed."""
    lines = []
    for scene, row in rows.items():
        by_case = row[quantity]
        cells = [f"{mean(by_case[case]):.4f}" for case in CASES]
        for a, b in (("page", "chunk"), ("each", "page")):
            differences = [x - y for x, y in zip(by_case[a], by_case[b], strict=True)]
            cells.append("{:+.4f}±{:.4f}".format(*mean_and_error(differences)))
        lines.append((scene, *cells))
    return format_table(("scene", *CASES, "page - chunk", "each - page"), lines)


def cost_table(rows: dict[str, dict[str, Any]]) -> str:
    """Runs of each chunk and times."""
    lines = [
        (
            scene,
            str(row["pages"]),
            "{:.1f} ± {:.1f}".format(*mean_and_error(row["runs"]["page"])),
            *(f"{row['time'][case]:.2f}" for case in ("page", "each")),
        )
        for scene, row in rows.items()
    ]
    return format_table(("scene", "pages", "runs", "time of page", "time of each"), lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = make_parser("correction_unit", __doc__)
    parser.add_argument("--scenes", nargs="*", choices=[*SCENES, *DEMO_SCENES], default=[*SCENES, *DEMO_SCENES])
    parser.add_argument("--codecs", nargs="+", default=["int2", "int2-pair", "int4"], help="of keys, with step sizes")
    parser.add_argument("--corrections", nargs="+", choices=("measured", "formula"), default=["measured", "formula"])
    parser.add_argument("--seeds", type=int, default=8, help="videos of each scene")
    parser.add_argument("--rounds", type=int, default=5, help="of the times")
    parser.set_defaults(threads=1)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes the JSON file."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    results: dict[str, dict[str, Any]] = {
        f"{codec}, {correction}": {} for codec in arguments.codecs for correction in arguments.corrections
    }
    for scene in arguments.scenes:
        is_demo = scene in DEMO_SCENES
        if is_demo:
            seeds = demo_scenes(arguments.seeds, arguments.seed, is_cut=DEMO_SCENES[scene])
        else:
            seeds = [[draw_scene(scene, arguments.seed + number)] for number in range(arguments.seeds)]
        for codec in arguments.codecs:
            for correction in arguments.corrections:
                note(f"{scene}, {codec}, {correction}")
                rows = DEMO_PAGE_ROWS if is_demo else None
                found = measure_scene(seeds, codec, correction, rows, arguments.rounds)
                results[f"{codec}, {correction}"][scene] = found
    for name, scenes in results.items():
        for quantity in QUANTITIES[:-1]:
            print(f"\n{name}: {quantity}\n\n{table(scenes, quantity)}")
        print(f"\n{name}: runs and times\n\n{cost_table(scenes)}")
    write_report(arguments, "correction_unit", results)


if __name__ == "__main__":
    main()
