"""Draws how many landmarks are there again over the frames between two visits: a panel for each memory, a line for each
storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#666666", "#cc79a7", "#d55e00", "#009e73", "#0072b2", "#56b4e9")
SMOOTHED = 4
"""Neighbouring distances that a point of a line is the mean of."""


def draw(results: Mapping[str, Sequence[Any]], path: Path) -> None:
    """`results`: rows as `memory_horizon.Program.horizon` gives them."""
    figure = Figure(figsize=(6 * len(results), 4.2), dpi=110, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(results), sharey=True))
    for axes, rows in zip(panels, results.values(), strict=True):
        _panel(axes, rows)
    panels[0].set_ylabel("landmarks that are there again, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(axes: Axes, rows: Sequence[Any]) -> None:
    for row, color in zip(rows, cycle(COLORS), strict=False):
        distances, percent = _smoothed(row.revisits)
        axes.plot(distances, percent, color=color, label=row.storage, linewidth=2.4 if row.storage == "bf16" else 1.6)
    axes.set_title(f"{rows[0].bytes / 2**20:.2f} MiB per stream", loc="left", fontsize=10)
    axes.set_xlabel("frames between two visits of a place")
    axes.set_ylim(0, 102)
    axes.set_xlim(left=0)
    axes.grid(color="#dddddd", linewidth=0.6)


def _smoothed(revisits: Any) -> tuple[list[float], list[float]]:
    """(Distances, percentages), each over `SMOOTHED` distances."""
    size = min(SMOOTHED, len(revisits.distances))
    parts = [slice(start, start + size) for start in range(len(revisits.distances) - size + 1)]
    same, landmarks = np.array(revisits.num_same), np.array(revisits.num_landmarks)
    return (
        [float(np.mean(revisits.distances[part])) for part in parts],
        [100 * float(same[part].sum() / max(1, landmarks[part].sum())) for part in parts],
    )
