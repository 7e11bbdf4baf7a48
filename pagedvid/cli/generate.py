"""`pagedvid generate`: from a file of prompts to a folder of videos."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedvid import __version__
from pagedvid.cli.cluster_parts import Maker, add_cluster_options, cluster_maker, refuse_flags_without_ray
from pagedvid.cli.cores import choose_wait_policy, let_threads_sleep
from pagedvid.cli.generate_plan import plan_lines
from pagedvid.cli.messages import logs_as_notes, reason
from pagedvid.cli.options import add_config_options, path_flag, require_one_device, resolve_options
from pagedvid.cli.progress import ProgressView
from pagedvid.cli.progress_view import progress_view
from pagedvid.cli.prompts import FIELDS, read_prompts
from pagedvid.cli.ranks import Place, Ranks, follow_rank_0, leading, on_own_device, own_share, place_of
from pagedvid.cli.run_result import RunResult, summary_lines
from pagedvid.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SUCCESS
from pagedvid.cli.threads import ThreadChoice
from pagedvid.config.sections import Config, frame_settings
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.output.folder import OutputFolder
from pagedvid.output.mp4 import av_library

if TYPE_CHECKING:
    from pagedvid.cluster.url_folder import UrlFolder
    from pagedvid.engine.engine import Engine
    from pagedvid.models.build import RunSpec

logger = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> None:
    """Adds `generate`."""
    parser = subparsers.add_parser("generate", help="generate videos from a file of prompts", description=__doc__)
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=path_flag,
        required=True,
        help=f".txt (a prompt per line) or .jsonl (an object per line with {', '.join(FIELDS)}; docs/generate.md)",
    )
    parser.add_argument("--out", metavar="DIR", type=_place, help="folder for the videos; with --ray also a URL")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="make only the videos that --out lacks")
    existing.add_argument("--overwrite", action="store_true", help="make all videos again")
    add_cluster_options(parser)
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
    requests = read_prompts(args.prompts, spec.config.generate, spec.model.frames)
    if args.plan:
        print("\n".join(plan_lines(share, requests)))
        return EXIT_SUCCESS
    if args.out is None:
        raise ConfigError("generate needs --out DIR, the folder for the videos (or --plan)")
    if not spec.model.writes_latents:
        av_library()  # now, not after the first chunk
    with (
        _maker(args, spec, place) as make,
        progress_view() as view,
        logs_as_notes(view.note),
        _open_folder(args, spec) as folder,
    ):
        if args.ray:
            folder.refuse_another_job()
        missing = [request for request in requests if not folder.is_done(request)]
        result = make(folder, missing, view, _versions(folder.holds_latents)) if missing else RunResult()
        if isinstance(folder, OutputFolder) and not (result.num_left or folder.holds_latents):
            _write_sheet(folder, requests)
    print(
        "\n".join(
            summary_lines(result, len(requests) - len(missing), spec.config.cache, args.out, config.generate.devices)
        )
    )
    return _exit_code(result)


def _place(written: str) -> Path | str:
    """The argparse type of --out: the path of a folder, or a URL."""
    return written if "://" in written else path_flag(written)


def _open_folder(args: argparse.Namespace, spec: RunSpec) -> OutputFolder | UrlFolder:
    """Where the results go. Raises ConfigError."""
    job = frame_settings(spec.config), _file_fingerprints(spec)
    how = {"resume": args.resume, "overwrite": args.overwrite, "holds_latents": spec.model.writes_latents}
    if isinstance(args.out, Path):
        return OutputFolder(args.out, *job, **how)
    if args.ray is None:
        raise ConfigError(f"--out {args.out} is a URL, which is for workers on Ray; add --ray local, or give a folder")
    from pagedvid.cluster.url_folder import UrlFolder

    return UrlFolder(args.out, *job, **how)


@contextmanager
def _maker(args: argparse.Namespace, spec: RunSpec, place: Place | None) -> Iterator[Maker]:
    """What makes the videos: workers on Ray, or one worker in this process, perhaps with other ranks. Raises
    ConfigError."""
    if args.ray is not None:
        require_one_device(spec.config, "generate --ray")
        with cluster_maker(args, spec) as make:
            yield make
        return
    refuse_flags_without_ray(args)
    with leading(place, spec, args.command_line) as ranks:
        yield partial(_make_videos, spec, ranks)


def _make_videos(
    spec: RunSpec,
    ranks: Ranks | None,
    folder: OutputFolder,
    requests: Sequence[VideoRequest],
    view: ProgressView,
    versions: Mapping[str, str],
) -> RunResult:
    from pagedvid.cli.video_run import VideoRun

    to_encode = [prompt for it in requests if "embeddings" not in it.inputs for prompt in it.prompts]
    return VideoRun(
        lambda: create_engine(spec, to_encode) if ranks is None else ranks.build(spec, to_encode),
        folder,
        requests,
        view,
        frames_per_second=spec.config.generate.frames_per_second,
        scale=spec.config.generate.scale or spec.model.pixel_scale,
        versions=versions,
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


def _file_fingerprints(spec: RunSpec) -> dict[str, str | None]:
    from pagedvid.models.origin import file_fingerprints

    return file_fingerprints(spec)


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
