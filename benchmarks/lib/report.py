"""What every benchmark reads, prints and writes: arguments, progress, tables, and the JSON file of a run."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pagedvid

RESULTS = Path(__file__).resolve().parents[1] / "results"
TABLE_WIDTH = 80
JSON_WIDTH = 120


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--threads", type=int, help="threads of PyTorch's operations (default: PyTorch's choice)")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="JSON file to write")
    return parser


def use_threads(num_threads: int | None) -> None:
    """Applies --threads."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def note(text: object) -> None:
    """Reports progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Right-aligned columns under their headers. Raises ValueError if the table is wider than 80 characters."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (headers, *rows)]
    if len(lines[0]) > TABLE_WIDTH:
        raise ValueError(f"the table is {len(lines[0])} characters wide; at most {TABLE_WIDTH} fit; shorten a header")
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def name_after_device(arguments: argparse.Namespace, name: str) -> str:
    """The full name of the device of --device. Unless --out says otherwise, the JSON file gets it: NAME_DEVICE.json."""
    device = torch.device(arguments.device)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if arguments.out == RESULTS / f"{name}.json":
        arguments.out = RESULTS / f"{name}_{device_name.replace(' ', '_').lower()}.json"
    return device_name


def write_report(arguments: argparse.Namespace, name: str, results: Mapping[str, Any]) -> None:
    """Writes the JSON file and says where it is."""
    save_report(arguments, name, results)
    print(f"\nwritten to {arguments.out}")


def save_report(arguments: argparse.Namespace, name: str, results: Mapping[str, Any]) -> None:
    """Writes the JSON file: when and where it ran, all settings that affect the results, and the results.

    The file is whole at any time, so that a program that is stopped later leaves what it had written before.
    """
    given = {key: value for key, value in vars(arguments).items() if key not in ("out", "readme")}
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    report = {"benchmark": name, "environment": environment(), "settings": settings, "results": dict(results)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = arguments.out.with_name(f".{arguments.out.name}.unfinished")
    unfinished.write_text(to_json(report) + "\n")
    unfinished.replace(arguments.out)


def to_json(value: Any, indent: int = 0) -> str:
    """Indented JSON that keeps on one line whatever fits there, and every list of numbers. Keys must be strings."""
    flat = json.dumps(value)
    is_numbers = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    if not isinstance(value, dict | list) or is_numbers or indent + len(flat) <= JSON_WIDTH:
        return flat
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {to_json(item, indent + 2)}" for key, item in value.items()]
    else:
        items = [to_json(item, indent + 2) for item in value]
    lines = ",".join(f"\n{' ' * (indent + 2)}{item}" for item in items)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}{lines}\n{' ' * indent}{closing}"


def environment() -> dict[str, Any]:
    """Versions, machine and git revision."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
        "pagedvid": pagedvid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": processor_name(),
        "threads": torch.get_num_threads(),
    }


def processor_name() -> str:
    """The processor's name and the vector instructions that PyTorch uses on it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def git_revision() -> str:
    """The commit of this checkout, with "-modified" if tracked files differ from it; "unknown" outside of git."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", *command], cwd=RESULTS, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return f"{revision}-modified" if git("status", "--porcelain", "--untracked-files=no") else revision
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
