"""What `calibrate` and `profile` share: which videos are generated, where the result goes, what is shown meanwhile."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pagedvid.cli.cores import choose_wait_policy
from pagedvid.cli.messages import logs_as_notes, reason
from pagedvid.cli.options import by_rule, path_flag
from pagedvid.cli.progress import ProgressView, Status
from pagedvid.cli.progress_view import progress_view
from pagedvid.cli.prompts import read_prompts
from pagedvid.cli.terminal import EXIT_FAILED, EXIT_SUCCESS
from pagedvid.config.rules import whole
from pagedvid.config.sections import Config
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.files.figure import new_figure
from pagedvid.output.given_files import goes_on
from pagedvid.shown import named

if TYPE_CHECKING:
    from pagedvid.calibration.run import CalibrationRun
    from pagedvid.codecs.tables_file import Calibration
    from pagedvid.engine.engine import Engine

DEMO_PROMPTS = 72
"""Prompts for the demo model when none are given."""
DEMO_PROMPT_SEED = 20_260
PROFILED_VIDEOS = 8
"""Error curves of fewer than four depend on which videos they are (docs/budgets.md)."""


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Adds --prompts, --out and --overwrite."""
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=path_flag,
        help=".txt (a prompt per line) or .jsonl; the demo model has prompts of its own",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=path_flag, required=True, help="such as WEIGHTS/klt_tables.safetensors"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--profile-videos",
        metavar="N",
        type=by_rule(whole(0, 10**6)),
        default=PROFILED_VIDEOS,
        help=f"videos on which error curves are measured (default: {PROFILED_VIDEOS}; fewer than 4 are a poor guess)",
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=path_flag, help="picture of the error curves and of what cache.bits chooses"
    )


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises ConfigError for a file that cannot be written, or that exists already."""
    if out.exists() and not overwrite:
        raise ConfigError(f"{named(out)} exists already; give --overwrite, or another --out")
    if out.is_dir():
        raise ConfigError(f"--out {named(out)} is a folder; give a file in it")
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise ConfigError(f"{named(out.parent)} is not a folder that can be written to; make it, or give another --out")


def observing(config: Config) -> Config:
    """The settings with a cache in bf16, which hardly changes the keys and values that are observed."""
    cache = replace(
        config.cache,
        codec="bf16",
        bits=None,
        look_back="auto",
        sink_codec=None,
        newest_codec=None,
        layer_codecs=(),
        page_rows="auto",
        tables=None,
        correction="off",
    )
    return replace(config, cache=cache)


def measured_requests(config: Config, prompts: Path | None, command: str) -> list[VideoRequest]:
    """The videos to generate. Raises ConfigError when no prompts are given and the model has none of its own, for
    videos that go on from given frames, and for a compiled model."""
    if config.model.compile:
        raise ConfigError(f"{command} changes what goes on inside of the model's blocks; remove model.compile")
    if prompts is not None:
        requests = read_prompts(prompts, config.generate)
        if any(goes_on(request.inputs) for request in requests):
            raise ConfigError(f'{command} makes its videos from their beginning; leave "image" and "video" out')
        return requests
    if config.model.name != "demo":
        raise ConfigError(f"{command} needs --prompts FILE for {config.model.name}, with prompts like those to come")
    import numpy as np

    from pagedvid.models.demo.captions import caption
    from pagedvid.models.demo.world import random_scene

    seed = DEMO_PROMPT_SEED + config.generate.seed
    chance = np.random.default_rng(seed)
    return [
        VideoRequest(str(number), caption(random_scene(chance)), config.generate.num_frames, seed + number)
        for number in range(DEMO_PROMPTS)
    ]


@dataclass
class Shown:
    """Shows how a run of videos goes on, and counts those that fail."""

    view: ProgressView
    num_failed: int = 0

    def start(self, requests: Sequence[VideoRequest], frames_per_chunk: int, num_measured: int) -> None:
        """Begins to count, after the videos that an interrupted run had measured."""
        self._frames_per_chunk, self._started = frames_per_chunk, time.monotonic()
        self._num_videos, self._num_ended = len(requests), num_measured
        chunks = [-(-request.num_frames // frames_per_chunk) for request in requests]
        self._num_chunks, self._num_before, self._num_done = sum(chunks), sum(chunks[:num_measured]), 0
        if num_measured:
            self.view.note(f"goes on after {num_measured} videos of a run that was interrupted")

    def chunk_done(self, engine: Engine) -> None:
        """Shows the status."""
        self._num_done += 1
        stats, seconds = engine.cache.stats(), max(time.monotonic() - self._started, 1e-9)
        done = self._num_before + self._num_done
        pages, rate = (stats.pages_used, stats.num_pages), self._num_done * self._frames_per_chunk / seconds
        self.view.update(Status(self._num_ended, self._num_videos, done, self._num_chunks, *pages, rate))

    def video_ended(self, request: VideoRequest, error: Exception | None) -> None:
        """Says why a video failed."""
        self._num_ended += 1
        if error is not None:
            self.num_failed += 1
            self.view.note(f"failed  {request.id}  {reason(error)}")


def measure(
    config: Config,
    requests: Sequence[VideoRequest],
    args: argparse.Namespace,
    learn: Callable[[CalibrationRun], Calibration],
) -> int:
    """Runs `learn`, writes what it returns (and --plot), and returns the exit code.

    `config`: the settings of the command line; the videos are generated with `observing` ones. Raises ConfigError if
    nothing was learned.
    """
    choose_wait_policy()
    import torch

    from pagedvid.calibration.run import CalibrationRun
    from pagedvid.codecs.tables_file import save_calibration

    if config.generate.threads != "auto":  # what is measured must not depend on what else the cores do
        torch.set_num_threads(int(config.generate.threads))
    if args.plot is not None:
        new_figure(args.plot)  # raises at once what would be wrong at the end
    with progress_view() as view, logs_as_notes(view.note):
        shown = Shown(view)
        run = CalibrationRun(observing(config), requests, args.out, shown)
        calibration = learn(run)
        try:
            save_calibration(calibration, args.out)
            if args.plot is not None:
                draw(config, calibration, args.out, args.plot)
        except ConfigError as error:
            view.note(f"failed  {error}")
            return EXIT_FAILED
        run.forget()
    print(f"{args.out}  {calibration.num_bytes} bytes, {calibration.calibrated_on}{_profiled(calibration)}")
    return EXIT_FAILED if shown.num_failed else EXIT_SUCCESS


def draw(config: Config, calibration: Calibration, tables: Path, path: Path) -> None:
    """Draws the error curves in a file, and what the settings choose by them. Raises ConfigError."""
    from pagedvid.budgets.plot import draw_profile
    from pagedvid.budgets.profile import profile_of
    from pagedvid.models.build import resolve

    profile = profile_of(calibration)
    if profile is None:
        raise ConfigError("--plot draws error curves, but none were measured; leave --profile-videos out")
    cache = replace(config.cache, codec=profile.ladder, layer_codecs=(), tables=str(tables))
    run = resolve(replace(config, cache=cache))
    assert run.spending is not None
    draw_profile(profile, run.spending, run.cache.shape.page, path)


def _profiled(calibration: Calibration) -> str:
    """How many videos the error curves are from, and how much these differ."""
    from pagedvid.budgets.profile import profile_of

    profile = profile_of(calibration)
    if profile is None:
        return ""
    return f", profiled on {len(profile.prompts)} (errors differ by {100 * float(profile.spread().median()):.0f} %)"
