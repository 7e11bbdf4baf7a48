"""Prints the results of budgets.py as tables of 80 columns, and draws the plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from budgets.bits import UNIFORM_NAME
from budgets.plot import draw
from budgets.video import FREE_CHUNKS, HELD_CHUNKS
from lib.report import format_table
from pagedvid.quality.metrics import mean_and_error

WHERE = {"free": FREE_CHUNKS, "held": HELD_CHUNKS}
TITLES = {"free": "from its own chunks", "held": "from the reference's chunks"}
Measured = Mapping[str, Any]
"""What one row measured."""


def show(results: Mapping[str, Any], plot: Path) -> None:
    """Shows all parts that ran; draws the plot if there are rows to draw."""
    bits, eviction = results.get("bits", []), results.get("eviction", [])
    rows = [*bits, *eviction]
    tables = video_tables(rows) if rows else {}
    if "default" in results:
        tables["the old default, and by head at fewer bits"] = default_table(results["default"])
    if "long" in results:
        tables["long videos"] = long_table(results["long"])
    for title, table in tables.items():
        print(f"\n{title}\n\n{table}")
    if rows:
        draw(bits, eviction, plot)
        print(f"\ndrawn to {plot}")


def video_tables(rows: Sequence[Measured]) -> dict[str, str]:
    """Tables by title."""
    num_prompts = len(rows[0]["free"])
    tables = {}
    for where, chunks in WHERE.items():
        span = f"chunks {chunks.start} to {chunks.stop - 1}, {TITLES[where]}"
        tables[f"{num_prompts} prompts, PSNR in dB of {span}"] = budget_table(rows, partial(level, where))
        if any(row["method"] == UNIFORM_NAME for row in rows):
            gains = budget_table(rows, partial(gain, where, rows))
            tables[f"gain over {UNIFORM_NAME}, prompt by prompt, {span}"] = gains
    tables["stored bits per value of a full window"] = budget_table(rows, lambda row: f"{row['bits']:.2f}")
    return tables


def budget_table(rows: Sequence[Measured], cell: Callable[[Measured], str]) -> str:
    """One line per method, one column per budget; `cell`: what to write for a row."""
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    methods = dict.fromkeys(row["method"] for row in rows)
    by_place = {(row["method"], row["budget"]): row for row in rows}
    lines = [
        (method, *(cell(by_place[method, bits]) if (method, bits) in by_place else "-" for bits in budgets))
        for method in methods
    ]
    return format_table(("bits", *(f"{bits:g}" for bits in budgets)), lines)


def psnr(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard error."""
    mean, error = mean_and_error(values)
    return f"{mean:{sign}.1f}±{error:.1f}"


def level(where: str, row: Measured) -> str:
    """Mean PSNR."""
    return psnr(row[where])


def gain(where: str, rows: Sequence[Measured], row: Measured) -> str:
    """Mean difference to the uniform codecs of the same budget."""
    uniform = [each for each in rows if each["method"] == UNIFORM_NAME and each["budget"] == row["budget"]]
    return psnr(np.subtract(row[where], uniform[0][where]).tolist(), "+") if uniform else "-"


def default_table(rows: Sequence[Measured]) -> str:
    """PSNR, and the difference to the first row, the old default, prompt by prompt."""
    lines = []
    for row in rows:
        differences = [psnr(np.subtract(row[where], rows[0][where]).tolist(), "+") for where in WHERE]
        cells = [cell for where, gained in zip(WHERE, differences, strict=True) for cell in (psnr(row[where]), gained)]
        lines.append((row["method"], f"{row['bits']:.2f}", *cells))
    return format_table(("storage", "bits", "free", "gain", "held", "gain"), lines)


def long_table(rows: Sequence[Measured]) -> str:
    """What the last frames of long videos show, and the memory of a stream against that of the first row, bf16."""
    lines = []
    for row in rows:
        mean, error = mean_and_error([100 * value for value in row["right"]])
        saved = 100 * (1 - row["stream_bytes"] / rows[0]["stream_bytes"])
        bits = f"{row['bits']:.2f}"
        lines.append((row["method"], bits, str(row["frames"]), f"{mean:.1f}±{error:.1f}", f"{saved:.1f} %"))
    return format_table(("storage", "bits", "frames", "percent right at the end", "memory saved"), lines)
