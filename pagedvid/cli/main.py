"""The `pagedvid` command: one file per subcommand, one line per error.

Exit codes: 0 all is well, 1 a video or a proof failed, 2 the input is wrong and nothing was started, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pagedvid import __version__
from pagedvid.cli import calibrate, capacity, config_show, decode, env, generate, models
from pagedvid.errors import PagedvidError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and ends with the exit code for bad input."""
        report_error(f"{message} (see {self.prog} --help)")
        raise SystemExit(EXIT_BAD_INPUT)


def report_error(message: str) -> None:
    """One line to stderr."""
    print("pagedvid: error:", " ".join(message.split()), file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = _Parser(prog="pagedvid", description="Generate many videos at once through a paged, quantized KV cache.")
    parser.add_argument("--version", action="version", version=f"pagedvid {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    generate.add_parser(subparsers)
    decode.add_parser(subparsers)
    calibrate.add_parser(subparsers)
    capacity.add_parser(subparsers)
    models.add_parser(subparsers)
    config_show.add_parser(subparsers)
    env.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    try:
        args = build_parser().parse_args(argv)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except PagedvidError as error:
        report_error(str(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        report_error("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone (`pagedvid config show | head`): nothing may be flushed into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
