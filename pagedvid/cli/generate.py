"""`pagedvid generate`: from a file of prompts to a folder of videos."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from pagedvid import __version__
from pagedvid.cli.cores import choose_wait_policy, let_threads_sleep
from pagedvid.cli.generate_plan import plan_lines
from pagedvid.cli.messages import logs_as_notes, reason
from pagedvid.cli.options import add_config_options, path_flag, resolve_options
from pagedvid.cli.progress import ProgressView
from pagedvid.cli.progress_view import progress_view
from pagedvid.cli.prompts import read_prompts
from pagedvid.cli.ranks import Ranks, follow_rank_0, leading, on_own_device, own_share, place_of
from pagedvid.cli.run_result import RunResult, summary_lines
from pagedvid.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SUCCESS
from pagedvid.cli.threads import ThreadChoice
from pagedvid.config.sections import Config, frame_settings
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.output.folder import OutputFolder
from pagedvid.output.mp4 import av_library

if TYPE_CHECKING:
    from pagedvid.engine.engine import Engine
    from pagedvid.models.build import RunSpec

logger = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> None:
    """Adds `generate`."""
    parser = subparsers.add_parser("generate", help="generate videos from a file of prompts", description=__doc__)
    parser.add_argument(
        "--prompts", metavar="FILE", type=path_flag, required=True, help=".txt (a prompt per line) or .jsonl"
    )
    parser.add_argument("--out", metavar="DIR", type=path_flag, help="folder for the videos")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="make only the videos that --out lacks")
    existing.add_argument("--overwrite", action="store_true", help="make all videos again")
    parser.add_argument("--plan", action="store_true", help="print pages and bytes per stream and stop")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Makes the missing videos and returns the exit code. Raises `PagedvidError` for bad input."""
    config = resolve_options(args).config
    place = place_of(config)
    spec = resolved(on_own_device(config, place))
    share = own_share(spec, place)
    if place is not None and place.rank > 0:
        return follow_rank_0(place, spec)
    requests = read_prompts(args.prompts, spec.config.generate)
    if args.plan:
        print("\n".join(plan_lines(share, requests)))
        return EXIT_SUCCESS
    if args.out is None:
        raise ConfigError("generate needs --out DIR, the folder for the videos (or --plan)")
    if not spec.model.writes_latents:
        av_library()  # now, not after the first chunk
    with (
        leading(place, spec, args.command_line) as ranks,
        progress_view() as view,
        logs_as_notes(view.note),
        OutputFolder(
            args.out,
            frame_settings(spec.config),
            resume=args.resume,
            overwrite=args.overwrite,
            holds_latents=spec.model.writes_latents,
        ) as folder,
    ):
        missing = [request for request in requests if not folder.is_done(request)]
        result = _make_videos(spec, folder, missing, view, ranks) if missing else RunResult()
        if not (result.num_left or folder.holds_latents):
            _write_sheet(folder, requests)
    print(
        "\n".join(
            summary_lines(result, len(requests) - len(missing), spec.config.cache, args.out, config.generate.devices)
        )
    )
    return _exit_code(result)


def _make_videos(
    spec: RunSpec, folder: OutputFolder, requests: Sequence[VideoRequest], view: ProgressView, ranks: Ranks | None
) -> RunResult:
    from pagedvid.cli.video_run import VideoRun

    to_encode = [request.prompt for request in requests if "embeddings" not in request.inputs]
    return VideoRun(
        lambda: create_engine(spec, to_encode) if ranks is None else ranks.build(spec, to_encode),
        folder,
        requests,
        view,
        frames_per_second=spec.config.generate.frames_per_second,
        scale=spec.config.generate.scale or spec.model.pixel_scale,
        versions=_versions(folder.holds_latents),
        threads=ThreadChoice.of(spec.config),
        **({} if ranks is None else {"require_all": ranks.require_all}),
    ).run()


def resolved(config: Config) -> RunSpec:
    """What the configuration comes to. PyTorch is imported here, so that `--help` does not wait for it."""
    if config.generate.devices > 1:
        let_threads_sleep()
    else:
        choose_wait_policy()
    from pagedvid.models.build import resolve

    return resolve(config)


def create_engine(spec: RunSpec, prompts: Sequence[str]) -> Engine:
    """The engine: prompts are encoded, the model is loaded and the memory allocated."""
    from pagedvid.models.build import build_engine

    return build_engine(spec, prompts)


def _versions(of_latents: bool) -> dict[str, str]:
    """The versions of what makes the frames and what writes them."""
    import torch

    versions = {"pagedvid": __version__, "torch": torch.__version__}
    return versions if of_latents else {**versions, "av": av_library().__version__}


def _write_sheet(folder: OutputFolder, requests: Sequence[VideoRequest]) -> None:
    """Draws the sheet. The videos do not depend on it, so a sheet that cannot be drawn does not fail the run."""
    try:
        from pagedvid.output.sheet import MAX_ROWS, SheetRow, write_sheet
    except ImportError as error:
        logger.warning("%s could not be written: it needs Pillow (%s): pip install pillow", folder.sheet_path, error)
        return
    rows = [
        SheetRow(folder.video_path(request.id), request.prompt, f"{request.id}  seed {request.seed}")
        for request in islice((request for request in requests if folder.is_done(request)), MAX_ROWS)
    ]
    if not rows:
        return
    try:
        write_sheet(folder.sheet_path, rows)
    except Exception as error:
        logger.warning("%s could not be written: %s", folder.sheet_path, reason(error))


def _exit_code(result: RunResult) -> int:
    if result.num_left:
        return EXIT_INTERRUPTED if result.was_interrupted else EXIT_FAILED
    return EXIT_FAILED if result.num_failed else EXIT_SUCCESS
