"""`pagedvid profile`: measures what each number of bits and each look-back costs every head of a model.

With the tables of klt codecs that the model has (or that cache.tables names), their rungs are measured; without any,
those of int2, int4 and int8, for which the means of keys and values are observed first. The result holds the tables or
means too: it takes their place. `cache.bits` then spends any number of bits by it (docs/budgets.md). A run that was
interrupted goes on where it was, if it is started again with the same settings.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pagedvid.cli.measuring import add_file_options, check_out, measure, measured_requests
from pagedvid.cli.options import add_config_options, require_one_device, resolve_options
from pagedvid.errors import ConfigError

if TYPE_CHECKING:
    from pagedvid.calibration.run import CalibrationRun
    from pagedvid.codecs.tables_file import Calibration


def add_parser(subparsers: Any) -> None:
    """Adds `profile`."""
    parser = subparsers.add_parser("profile", help="measure what bits cost every head of a model", description=__doc__)
    add_file_options(parser)
    parser.add_argument(
        "--ladder", choices=("klt", "int"), help="default: klt if the model has tables of klt codecs, otherwise int"
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generates, writes the file and returns the exit code. Raises `PagedvidError` for bad input."""
    from pagedvid.codecs.tables_file import load_calibration
    from pagedvid.models.build import tables_file

    given = resolve_options(args).config
    require_one_device(given, "profile")
    requests = measured_requests(given, args.prompts, "profile")
    if not args.profile_videos:
        raise ConfigError("--profile-videos is 0; give at least 1, better 4 or more")
    tables = None if args.ladder == "int" else tables_file(given)
    if tables is None and args.ladder == "klt":
        raise ConfigError(f"{given.model.name} has no tables of klt codecs; make them with `pagedvid calibrate`")
    check_out(args.out, overwrite=args.overwrite)
    known = None if tables is None else load_calibration(tables)

    def learn(run: CalibrationRun) -> Calibration:
        return run.profiled(known or run.with_means(), args.profile_videos)

    return measure(given, requests[: args.profile_videos], args, learn)
