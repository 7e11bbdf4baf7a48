"""`pagedvid calibrate`: makes the tables of klt codecs for a model, from a few of its own videos, and profiles it.

The videos are generated with a cache in bf16 and discarded; the tables hold means, bases and variances of the keys and
values of every layer. Then some of the videos are generated again, to measure what each number of bits and each
look-back costs every head (`pagedvid profile` does that alone). A file next to the weights that is called
klt_tables.safetensors is used without further settings. A video that fails is left out; the exit code is then 1. A run
that was interrupted goes on where it was, if it is started again with the same settings.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pagedvid.cli.measuring import add_file_options, check_out, measure, measured_requests
from pagedvid.cli.options import add_config_options, require_one_device, resolve_options

if TYPE_CHECKING:
    from pagedvid.calibration.run import CalibrationRun
    from pagedvid.codecs.tables_file import Calibration


def add_parser(subparsers: Any) -> None:
    """Adds `calibrate`."""
    parser = subparsers.add_parser("calibrate", help="make the tables of klt codecs for a model", description=__doc__)
    add_file_options(parser)
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generates, writes the file and returns the exit code. Raises `PagedvidError` for bad input."""
    config = resolve_options(args).config
    require_one_device(config, "calibrate")
    requests = measured_requests(config, args.prompts, "calibrate")
    check_out(args.out, overwrite=args.overwrite)

    def learn(run: CalibrationRun) -> Calibration:
        tables = run.with_tables()
        return run.profiled(tables, args.profile_videos) if args.profile_videos else tables

    return measure(config, requests, args, learn)
