"""`pagedvid calibrate`: makes the tables of klt codecs for a model, from a few of its own videos.

The videos are generated with a cache in bf16 and discarded; the tables hold means, bases and variances of the keys and
values of every layer. A file next to the weights that is called klt_tables.safetensors is used without further
settings. A video that fails is left out; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedvid.cli.cores import choose_wait_policy
from pagedvid.cli.messages import logs_as_notes, reason
from pagedvid.cli.options import add_config_options, path_flag, resolve_options
from pagedvid.cli.prompts import read_prompts
from pagedvid.cli.terminal import EXIT_FAILED, EXIT_SUCCESS
from pagedvid.config.sections import Config
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.errors import ConfigError, PagedvidError
from pagedvid.shown import named

if TYPE_CHECKING:
    from pagedvid.codecs.klt.file import Calibration

DEMO_PROMPTS = 72
"""Prompts for the demo model when none are given."""
DEMO_PROMPT_SEED = 20_260


def add_parser(subparsers: Any) -> None:
    """Adds `calibrate`."""
    parser = subparsers.add_parser("calibrate", help="make the tables of klt codecs for a model", description=__doc__)
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
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generates, writes the file and returns the exit code. Raises `PagedvidError` for bad input."""
    config = observing(resolve_options(args).config)
    requests = calibration_requests(config, args.prompts)
    if args.out.exists() and not args.overwrite:
        raise ConfigError(f"{named(args.out)} exists already; give --overwrite, or another --out")
    if args.out.is_dir():
        raise ConfigError(f"--out {named(args.out)} is a folder; give a file in it")
    if not (args.out.parent.is_dir() and os.access(args.out.parent, os.W_OK)):
        raise ConfigError(
            f"{named(args.out.parent)} is not a folder that can be written to; make it, or give another --out"
        )
    choose_wait_policy()
    from pagedvid.codecs.klt.file import save_calibration

    with logs_as_notes(report):
        calibration, num_failed = calibrate_model(config, requests)
    try:
        save_calibration(calibration, args.out)
    except ConfigError as error:
        report(f"failed  {error}")
        return EXIT_FAILED
    print(f"{args.out}  {calibration.num_bytes} bytes, {calibration.calibrated_on}")
    return EXIT_FAILED if num_failed else EXIT_SUCCESS


def report(line: str) -> None:
    """Prints one line to stderr."""
    print(line, file=sys.stderr)


def observing(config: Config) -> Config:
    """The settings with a cache in bf16, which hardly changes the keys and values that are observed."""
    cache = replace(
        config.cache,
        codec="bf16",
        sink_codec=None,
        newest_codec=None,
        layer_codecs=(),
        page_rows="auto",
        tables=None,
        correction="off",
    )
    return replace(config, cache=cache)


def calibration_requests(config: Config, prompts: Path | None) -> list[VideoRequest]:
    """The videos to generate. Raises ConfigError when no prompts are given and the model has none of its own."""
    if prompts is not None:
        return read_prompts(prompts, config.generate)
    if config.model.name != "demo":
        raise ConfigError(f"calibrate needs --prompts FILE for {config.model.name}, with prompts like those to come")
    import numpy as np

    from pagedvid.models.demo.captions import caption
    from pagedvid.models.demo.world import random_scene

    seed = DEMO_PROMPT_SEED + config.generate.seed
    chance = np.random.default_rng(seed)
    return [
        VideoRequest(str(number), caption(random_scene(chance)), config.generate.num_frames, seed + number)
        for number in range(DEMO_PROMPTS)
    ]


def calibrate_model(config: Config, requests: list[VideoRequest]) -> tuple[Calibration, int]:
    """Generates the videos and fits the tables; returns them and the number of failed videos, which stderr names.

    Raises ConfigError when no chunk was read by a later one, for example because all videos failed.
    """
    import torch

    from pagedvid.calibration.observe import ObservingCache
    from pagedvid.models.build import build_engine, resolve

    if config.generate.threads != "auto":  # tables must not depend on what else the cores do
        torch.set_num_threads(int(config.generate.threads))
    engine = build_engine(resolve(config), [request.prompt for request in requests], ObservingCache)
    cache, num_chunks, failures = engine.cache, 0, list[str]()
    assert isinstance(cache, ObservingCache)
    try:
        for request in requests:
            try:
                engine.submit(request)
            except PagedvidError as error:
                failures.append(f"failed  {request.id}  {reason(error)}")
        for output in engine.run():
            if isinstance(output, ChunkOutput):
                num_chunks += 1
            else:
                failures.append(f"failed  {output.request_id}  {reason(output.error)}")
    finally:
        engine.close()
    for line in failures:
        report(line)
    made = len(requests) - len(failures)
    return cache.calibration(config.model.name, f"{made} videos, {num_chunks} chunks"), len(failures)
