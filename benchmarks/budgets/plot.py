"""Draws PSNR over stored bits, one line for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from budgets.video import FREE_CHUNKS, HELD_CHUNKS

BITS_COLORS = ("#000000", "#0072b2", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#e69f00")
EVICTION_COLORS = ("#666666", "#8c6d31", "#7b4173", "#3182bd", "#31a354", "#bd9e39", "#ad494a", "#cccccc", "#111111")
TICKS = (0.5, 0.75, 1, 1.5, 2.25)


Measured = Mapping[str, Any]


def draw(bits: Sequence[Measured], eviction: Sequence[Measured], path: Path) -> None:
    """Writes the picture. Token eviction is dashed."""
    figure = Figure(figsize=(14, 7), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    free, held = (f"chunks {each.start} to {each.stop - 1}" for each in (FREE_CHUNKS, HELD_CHUNKS))
    _panel(left, bits, eviction, "free", f"{free}, from its own chunks")
    _panel(right, bits, eviction, "held", f"{held}, from the reference's chunks")
    left.set_ylabel("PSNR in dB against the bf16 run")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(axes: Axes, bits: Sequence[Measured], eviction: Sequence[Measured], where: str, title: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: f"{bits:g}"))
    axes.set_xlabel("stored bits per value of a full window, everything counted")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#dddddd", linewidth=0.6)
    for rows, colors, style in ((bits, BITS_COLORS, "-"), (eviction, EVICTION_COLORS, "--")):
        for method, color in zip(dict.fromkeys(row["method"] for row in rows), cycle(colors)):
            points = sorted((row["bits"], float(np.mean(row[where]))) for row in rows if row["method"] == method)
            axes.plot(*zip(*points, strict=True), style, color=color, label=method, marker="o", markersize=4)
