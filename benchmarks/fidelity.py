"""Which codec, preset, correction or published quantizer gives the best video per stored bit?

Half an hour on two cores. Five parts, each documented in its file in fidelity/:

tensor    error of attention on the same queries, keys and values, of the demo model and of synthetic families
video     whole videos of the demo model from the engine, with the correction at several strengths
drift     long videos
cost      time to store a chunk, compared with denoising it
fp8       error of attention when the history is decoded to 8-bit floats

Afterwards show.py prints the tables, answers.py says in words what they show, plot.py draws the first two parts.

    python benchmarks/fidelity.py
    python benchmarks/fidelity.py --parts video --prompts 4 --storages int2 klt2 "QVG tern"
    python benchmarks/fidelity.py --parts fp8 --tensor-prompts 64 --out benchmarks/results/fidelity_fp8.json
    python benchmarks/fidelity.py --show benchmarks/results/fidelity.json
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fidelity import cost, drift, fp8, video
from fidelity.answers import answers
from fidelity.processes import shared
from fidelity.show import show
from fidelity.tensor import DEMO, Sampling
from lib.caches import DEFAULT, OWN, PRESETS, Case
from lib.lab import Lab
from lib.quality import READ_FRAMES, draw_tasks
from lib.report import make_parser, use_threads, write_report
from lib.samples import FAMILIES
from pagedvid.engine.protocol import VideoModel
from pagedvid.models.demo.weights import load_demo

PARTS = ("tensor", "video", "drift", "cost", "fp8")
COST_VIDEOS = (1, 8)
COST_ROUNDS = 15


def measure_tensors(arguments: argparse.Namespace, model: VideoModel) -> dict[str, Any]:
    """Schemes by family, and the study of corrections by codec and family."""
    sampling = Sampling(arguments.tensor_prompts, arguments.seed, arguments.storages, arguments.weights, video.STUDIED)
    measured = shared(sampling.measure, arguments.families, arguments.processes)
    by_family = dict(zip(arguments.families, measured, strict=True))
    studies = {
        storage: {name: family["studies"][storage] for name, family in by_family.items()} for storage in video.STUDIED
    }
    return {"families": {name: family["schemes"] for name, family in by_family.items()}, "studies": studies}


def measure_videos(arguments: argparse.Namespace, model: VideoModel) -> list[dict[str, Any]]:
    """One row per case."""
    tasks = draw_tasks(arguments.prompts, arguments.seed)
    lab = Lab(model, [task.request for task in tasks], arguments.frames, arguments.steps, arguments.weights)
    bench = video.Bench.of(lab, tasks)
    return video.to_rows(video.measure_jobs(bench, video.jobs(lab, arguments.storages), arguments.processes))


def measure_drift(arguments: argparse.Namespace, model: VideoModel) -> list[dict[str, Any]]:
    """One row per cache."""
    tasks = draw_tasks(arguments.drift_prompts, arguments.seed)
    lab = Lab(model, [task.request for task in tasks], arguments.drift_frames, arguments.steps, arguments.weights)
    cases = drift.CASES + drift.CALIBRATED_CASES * lab.caches.has_tables
    return drift.to_rows(drift.measure_drift(lab, tasks, cases))


def measure_costs(arguments: argparse.Namespace, model: VideoModel) -> list[dict[str, Any]]:
    """One row per cache and number of videos."""
    requests = [task.request for task in draw_tasks(max(COST_VIDEOS), arguments.seed)]
    labs = [Lab(model, requests[:count], arguments.frames, arguments.steps, arguments.weights) for count in COST_VIDEOS]
    cases = (Case(DEFAULT, OWN), Case("int2", "measured"))
    return cost.measure_costs(labs, cases, arguments.cost_rounds)


def measure_fp8(arguments: argparse.Namespace, model: VideoModel) -> dict[str, Any]:
    """Codecs by family."""
    sampling = Sampling(arguments.tensor_prompts, arguments.seed, arguments.storages, arguments.weights)
    measured = shared(partial(fp8.measure_fp8, sampling), arguments.families, arguments.processes)
    return dict(zip(arguments.families, measured, strict=True))


def preset_codecs(model: VideoModel, weights: Path | None) -> dict[str, str]:
    """Codec of each preset."""
    caches = Lab(model, [], 1, 1, weights).caches
    names = (DEFAULT, *PRESETS) if caches.has_tables else (DEFAULT,)
    return {name: caches.settings(Case(name, OWN)).codec for name in names}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes the JSON file, prints tables and answers, draws the plot into the same folder."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    if arguments.show is not None:
        show(json.loads(arguments.show.read_text())["results"], arguments.show.with_suffix(".png"))
        return
    model = load_demo(arguments.weights)
    parts = {
        "tensor": measure_tensors,
        "video": measure_videos,
        "drift": measure_drift,
        "cost": measure_costs,
        "fp8": measure_fp8,
    }
    results: dict[str, Any] = {name: parts[name](arguments, model) for name in arguments.parts}
    results["presets"] = preset_codecs(model, arguments.weights)
    results["answers"] = answers(results)
    write_report(arguments, "fidelity", results)
    show(results, arguments.out.with_suffix(".png"))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; exits with a message if they cannot be measured."""
    parser = make_parser("fidelity", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--prompts", type=int, default=32, help="videos of the part video")
    parser.add_argument("--frames", type=int, default=READ_FRAMES, help="their length")
    parser.add_argument("--tensor-prompts", type=int, default=8, help="videos per family of the parts tensor and fp8")
    parser.add_argument("--families", nargs="*", choices=[DEMO, *FAMILIES], default=[DEMO, *FAMILIES])
    parser.add_argument("--storages", nargs="+", metavar="NAME", help="rows to measure (default: all)")
    parser.add_argument("--drift-prompts", type=int, default=8, help="videos of the part drift")
    parser.add_argument("--drift-frames", type=int, default=320, help="their length; 8 frames are a chunk")
    parser.add_argument("--cost-rounds", type=int, default=COST_ROUNDS, help="rounds of the part cost")
    parser.add_argument("--steps", type=int, default=8, help="denoise steps")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="processes of the parts tensor, video and fp8"
    )
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print and draw the results in this file; measure nothing"
    )
    parser.add_argument("--weights", type=Path, help="folder of the demo model's weights (default: the shipped ones)")
    arguments = parser.parse_args(argv)
    if arguments.frames < READ_FRAMES or arguments.drift_frames < 2 * READ_FRAMES:
        parser.error(f"videos are read in windows of {READ_FRAMES} frames: --frames needs one, --drift-frames two")
    if arguments.prompts < 2 or arguments.drift_prompts < 2 or arguments.tensor_prompts < 1:
        parser.error("standard errors need two videos: raise --prompts or --drift-prompts")
    return arguments


if __name__ == "__main__":
    main()
