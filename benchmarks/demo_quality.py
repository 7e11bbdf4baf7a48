"""Does the demo model show what its prompt says, for how long, and what do fewer bits in the cache cost?

Twenty minutes on two cores. Prompts describe complete scenes, half of them with one thing and half with two; every
thing is a combination of attributes that training never saw. The engine generates the videos with every cache; plain
image processing (lib/scene_reader.py) reads the first 24 and the last 24 frames. "int2-off" is int2 without the
correction.

color ... motion   percentage of things that show the attribute, mean and standard error over the prompts
all                percentage of everything that a prompt says: 4 attributes per thing, and the background
all, less bf16     difference to the first cache, prompt by prompt
number of things   percentage of videos with as many things in view as the prompt names; not part of "all"

Does history matter? The bf16 cache is emptied after the first chunk: the second chunk sees nothing, later ones see the
second. Identity is what frames 8 to 32 still share with frames 0 to 8: every attribute as read there, and the path,
which must continue the earlier motion (a thing that does not move may be at the right place by chance). "full" are the
prompts above; "open" are the same without color, kind and size, which only the history tells.

    python benchmarks/demo_quality.py
    python benchmarks/demo_quality.py --prompts 16 --frames 96 --codecs bf16 int2
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lib.caches import DEFAULT, OWN, Case
from lib.demo_sheet import draw_sheet
from lib.lab import Lab, VideoLoop
from lib.quality import (
    READ_FRAMES,
    Scores,
    Task,
    attributes_table,
    draw_tasks,
    identity_table,
    score_attributes,
    score_identity,
)
from lib.report import make_parser, note, use_threads, write_report
from pagedvid.codecs.assignment import CodecPair
from pagedvid.errors import ConfigError
from pagedvid.models.demo.weights import load_demo
from pagedvid.quality.metrics import mean_and_error

UNCORRECTED = "-off"
MAX_CACHES = 4
"""More do not fit into the table."""
IDENTITY_CHUNKS = 4
"""The first one is compared with the others."""
BATCH_VIDEOS = 16
SHEET_CACHES = ("bf16", DEFAULT)
SHEET_ROWS = 8
SHEET_STEP_FRAMES = 6


def case_of(cache: str) -> Case:
    """Storage and correction from the name of a cache. Raises ConfigError for an unknown codec."""
    storage = cache.removesuffix(UNCORRECTED)
    if storage != DEFAULT:
        CodecPair.read(storage)
    return Case(storage, OWN if storage == cache else "off")


def first_chunks(lab: Lab, emptied: bool) -> np.ndarray:
    """The first chunks with a bf16 cache, uint8 [videos, frames, H, W, 3]; `emptied`: after the first chunk."""

    def run(num_chunks: int, first_chunk: int) -> list[np.ndarray]:
        cache = lab.cache(case_of("bf16"))
        run = VideoLoop(lab.model, cache, lab.window, lab.requests, num_chunks, lab.num_denoise_steps)
        return run.generate(first_chunk=first_chunk).frames

    # Emptied: the first chunk is the same as in any run; the others come from streams that never saw it.
    chunks = [*run(1, 0), *run(IDENTITY_CHUNKS, 1)] if emptied else run(IDENTITY_CHUNKS, 0)
    return np.concatenate(chunks, axis=1)


def measure_identity(like: Lab, tasks: Sequence[Task]) -> dict[str, Scores]:
    """Scores by prompts and cache, e.g. "open, emptied", with the model and the steps of the lab `like`."""
    size = like.model.geometry.frames_per_chunk
    results = {}
    for prompts, asked in (("open", [task.opened() for task in tasks]), ("full", tasks)):
        batches = [asked[start : start + BATCH_VIDEOS] for start in range(0, len(asked), BATCH_VIDEOS)]
        labs = [
            replace(like, requests=[task.request for task in batch], num_frames=IDENTITY_CHUNKS * size)
            for batch in batches
        ]
        for cache in ("whole", "emptied"):
            note(f"identity: {prompts} prompts, {cache} cache")
            videos = np.concatenate([first_chunks(lab, cache == "emptied") for lab in labs])
            results[f"{prompts}, {cache}"] = score_identity(asked, videos, size)
    return results


def save_sheet(path: Path, tasks: Sequence[Task], videos: Mapping[str, np.ndarray], num_frames: int) -> None:
    """Draws the videos of the first prompts, those with one thing first."""
    order = sorted(range(min(SHEET_ROWS, len(tasks))), key=lambda i: len(tasks[i].scene.things))
    names = [name for name in SHEET_CACHES if name in videos] or list(videos)[:2]
    late = num_frames - READ_FRAMES
    shown = [range(0, min(2 * READ_FRAMES, late), SHEET_STEP_FRAMES), range(late, num_frames, SHEET_STEP_FRAMES)]
    prompts = [tasks[i].request.prompt for i in order]
    sheet = draw_sheet(prompts, {name: [videos[name][i] for i in order] for name in names}, shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes the JSON file and, into the same folder, the contact sheet."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    model = load_demo(arguments.weights)
    tasks = draw_tasks(arguments.prompts, arguments.seed)
    lab = Lab(model, [task.request for task in tasks], arguments.frames, arguments.steps, arguments.weights)
    videos = {}
    for name in arguments.codecs:
        note(f"engine: {name}")
        videos[name] = lab.engine_frames(lab.cache(case_of(name)))
    late = arguments.frames - READ_FRAMES
    windows = {f"{first}-{first + READ_FRAMES}": first for first in (0, late)}
    attributes = {
        window: {name: score_attributes(tasks, made, first) for name, made in videos.items()}
        for window, first in windows.items()
    }
    identity = measure_identity(lab, tasks)
    for window, by_cache in attributes.items():
        print(f"frames {window} of {arguments.prompts} prompts\n\n{attributes_table(tasks, by_cache)}\n")
    print(f"identity of the chunks after the first, bf16\n\n{identity_table(identity)}")
    save_sheet(arguments.out.with_name("demo_sheet.png"), tasks, videos, arguments.frames)
    write_report(arguments, "demo_quality", report_of(tasks, attributes, identity))


def report_of(
    tasks: Sequence[Task], attributes: Mapping[str, Mapping[str, Scores]], identity: Mapping[str, Scores]
) -> dict[str, Any]:
    """Means with standard errors, and the values of every prompt."""

    def with_means(scores: Scores) -> dict[str, Any]:
        return {"mean_and_error": {name: mean_and_error(values) for name, values in scores.items()}, "values": scores}

    return {
        "prompts": [task.request.prompt for task in tasks],
        "attributes": {
            window: {name: with_means(scores) for name, scores in by_cache.items()}
            for window, by_cache in attributes.items()
        },
        "identity": {name: with_means(scores) for name, scores in identity.items()},
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; exits with a message if they cannot be measured."""
    parser = make_parser("demo_quality", __doc__)
    parser.add_argument("--prompts", type=int, default=64, help="half of them of one thing, half of two")
    parser.add_argument("--frames", type=int, default=224, help="length of a video; the first and last 24 are read")
    codecs = f"caches to compare with the first: codecs, or {DEFAULT}; with {UNCORRECTED!r} appended: uncorrected"
    default = ["bf16", DEFAULT, "int2", "int2-off"]
    parser.add_argument("--codecs", nargs="+", default=default, metavar="CODEC", help=codecs)
    parser.add_argument("--steps", type=int, default=8, help="denoise steps")
    parser.add_argument("--weights", type=Path, help="folder of the demo model's weights (default: the shipped ones)")
    arguments = parser.parse_args(argv)
    if arguments.prompts < 4 or arguments.prompts % 2:
        parser.error(f"--prompts is {arguments.prompts}; give an even number of at least 4")
    if arguments.frames < 2 * READ_FRAMES:
        parser.error(f"--frames is {arguments.frames}; at least {2 * READ_FRAMES}: the first and last 24 are compared")
    if len(arguments.codecs) > MAX_CACHES or len(set(arguments.codecs)) < len(arguments.codecs):
        parser.error(f"--codecs are {', '.join(arguments.codecs)}; name at most {MAX_CACHES}, none twice")
    try:
        for name in arguments.codecs:
            case_of(name)
    except ConfigError as error:
        parser.error(f"--codecs: {error}")
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads is {arguments.threads}; at least 1, or leave it out for PyTorch's choice")
    if arguments.steps < 1:
        parser.error(f"--steps is {arguments.steps}; at least 1 denoise step per chunk")
    return arguments


if __name__ == "__main__":
    main()
