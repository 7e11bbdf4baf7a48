"""`pagedvid compare`: how far the videos of one folder are from those of another, to decide on a codec.

Make the same prompts with the same seeds twice, once with --kv bf16, and compare: A is the reference. PSNR and SSIM
(higher is closer), LPIPS where its package is installed and flicker (lower is closer) for every video, means with
standard errors, and what each side's cache cost (docs/compare.md).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedvid.cli.options import path_flag
from pagedvid.cli.terminal import EXIT_FAILED, EXIT_SUCCESS
from pagedvid.errors import ConfigError, listed
from pagedvid.shown import named

if TYPE_CHECKING:
    from pagedvid.cli.compare_report import QualityReport
    from pagedvid.quality.lpips import Lpips
    from pagedvid.quality.pairs import Pair


def add_parser(subparsers: Any) -> None:
    """Adds `compare`."""
    parser = subparsers.add_parser("compare", help="measure how far videos are from others", description=__doc__)
    parser.add_argument("a", metavar="A", type=path_flag, help="folder of videos, or one video: the reference")
    parser.add_argument("b", metavar="B", type=path_flag, help="folder of videos of the same names, or one video")
    parser.add_argument("--json", metavar="FILE", type=path_flag, help="write everything that was measured")
    parser.add_argument("--sheet", metavar="FILE", type=path_flag, help="PNG: reference, other, amplified difference")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the table and writes the files. Returns 1 when videos were left out, each named with the reason.

    Raises ConfigError when nothing can be compared.
    """
    from pagedvid.cli.compare_report import QualityReport
    from pagedvid.quality.comparison import compare
    from pagedvid.quality.pairs import find_pairs

    for file in (args.json, args.sheet):
        _check_folder(file)
    found = find_pairs(args.a, args.b)
    lpips, notes = _open_lpips(found.pairs)
    compared, left_out = [], dict(found.left_out)
    for number, pair in enumerate(found.pairs, start=1):
        print(f"{number}/{len(found.pairs)}  {pair.name}", file=sys.stderr)
        try:
            compared.append(compare(pair, lpips))
        except ConfigError as error:
            left_out[pair.a.name] = str(error)
    for name, why in left_out.items():
        print(f"left out  {name}  {why}", file=sys.stderr)
    if not compared:
        names = listed(list(left_out))
        raise ConfigError(f"none of {names} could be compared; give two folders made of the same prompts")
    notes += [f"{it.pair.name}: {change}" for it in compared for change in it.pair.differences()]
    report = QualityReport(args.a, args.b, compared, left_out, notes)
    print("\n".join(report.lines()))
    _write(args, report)
    return EXIT_FAILED if left_out else EXIT_SUCCESS


def _check_folder(file: Path | None) -> None:
    """Raises ConfigError now, not after the comparison, for a file that cannot be written."""
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise ConfigError(f"{named(file)} cannot be written: give a file in a folder that exists")


def _open_lpips(pairs: list[Pair]) -> tuple[Lpips | None, list[str]]:
    """LPIPS, or a note that says why its column is left out."""
    from pagedvid.quality.lpips import MIN_SIDE, Lpips

    small = [pair.name for pair in pairs if min(pair.shape.height, pair.shape.width) < MIN_SIDE]
    if small:
        return None, [f"LPIPS is left out: frames below {MIN_SIDE} pixels a side in {listed(small)}"]
    try:
        return Lpips(), []
    except ConfigError as error:
        return None, [f"LPIPS is left out: {error}"]


def _write(args: argparse.Namespace, report: QualityReport) -> None:
    from pagedvid.files.atomic import replacing
    from pagedvid.output.manifest import json_text
    from pagedvid.quality.sheet import write_comparison_sheet

    if args.json is not None:
        with replacing(args.json) as path:
            path.write_bytes(json_text(report.data(), indent=2))
        print(f"json    {args.json}")
    if args.sheet is not None:
        num_shown = write_comparison_sheet(args.sheet, report.compared)
        print(f"sheet   {args.sheet}: {num_shown} of {len(report.compared)} videos, the lowest PSNR first")
