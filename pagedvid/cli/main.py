"""The `pagedvid` command: one file per subcommand, one line per error.

Exit codes: 0 success; 1 a video or a proof failed, or the output could not be written; 2 the input is wrong and nothing
was started; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from typing_extensions import override

from pagedvid import __version__
from pagedvid.cli import calibrate, capacity, compare, config_show, decode, env, generate, models, profile, serve
from pagedvid.cli.messages import error_line
from pagedvid.cli.terminal import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, abandon, leave, prepare_streams
from pagedvid.errors import ConfigError, PagedvidError, RankError
from pagedvid.files.text import check_text
from pagedvid.shown import named, short


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, as all errors are."""

    @override
    def error(self, message: str) -> NoReturn:
        _report_error(f"{message} (see {self.prog} --help)")
        raise SystemExit(EXIT_BAD_INPUT)


def _report_error(message: str) -> None:
    """Prints an error in one line to stderr."""
    print("pagedvid: error:", error_line(message), file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = _Parser(prog="pagedvid", description="Generate many videos at once through a paged, quantized KV cache.")
    parser.add_argument("--version", action="version", version=f"pagedvid {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    generate.add_parser(subparsers)
    serve.add_parser(subparsers)
    decode.add_parser(subparsers)
    compare.add_parser(subparsers)
    calibrate.add_parser(subparsers)
    profile.add_parser(subparsers)
    capacity.add_parser(subparsers)
    models.add_parser(subparsers)
    config_show.add_parser(subparsers)
    env.add_parser(subparsers)
    return parser


def command() -> NoReturn:
    """The process `pagedvid`."""
    leave(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    prepare_streams()
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except RankError as error:
        _report_error(str(error))
        return EXIT_FAILED
    except PagedvidError as error:
        _report_error(str(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        _report_error("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout is gone (`pagedvid config show | head`): nothing may be flushed to it any more.
        abandon(sys.stdout)
        return EXIT_FAILED
    except OSError as error:
        return _report_os_error(error)


def _run(argv: Sequence[str]) -> int:
    for number, word in enumerate(argv, start=1):
        try:
            check_text(word)
        except ConfigError as error:
            raise ConfigError(f"argument {number}: {error}") from None
        if word.startswith("--") and word.partition("=")[2] == "--":  # argparse would pass on an empty list
            raise ConfigError(f"argument {number}: {short(word)} has no value; write one after the equals sign")
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as exit:  # --help, --version, and `_Parser.error`
        return int(exit.code or 0)
    args.command_line = argv
    code: int = args.run(args)
    return code


def _report_os_error(error: OSError) -> int:
    """An error with a path is bad input; one without is about stdout, which cannot be written."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        _report_error(f"{named(str(error.filename))}: {reason}; give another path")
        return EXIT_BAD_INPUT
    abandon(sys.stdout)
    _report_error(f"the output could not be written: {reason}")
    return EXIT_FAILED
