"""Draws error and PSNR over stored bits: published quantizers, pagedvid's codecs, and their Pareto front.

Every storage has the correction that is best for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from peers.catalogue import peers

PEER, OWN, PRESET = "published", "pagedvid", "preset"
STYLES = {PEER: ("#d55e00", "o"), OWN: ("#0072b2", "s"), PRESET: ("#009e73", "*")}
PRESET_NAMES = ("default", "quality", "balanced", "small")
SIDE_MARGIN = 1.2
CLOSE_DB = 0.1
TICKS = (0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6)
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
OFFSETS = [(x * radius, y * radius) for radius in (7, 13, 20, 28, 38, 50) for x, y in DIRECTIONS]
"""Where a name can be, as offsets from its point; the first that is free is taken."""
SHORT_OFFSET = 10
"""Names farther from their point get a line."""


class Point(NamedTuple):
    """One storage."""

    name: str
    bits: float
    value: float
    kind: str


def error_points(families: Mapping[str, Any], own_names: Callable[[str], bool], family: str) -> list[Point]:
    """Smallest relative output error over the corrections, from the part "tensor"."""
    points = []
    for name, result in families[family].items():
        best = min(summary["error"]["mean"] for summary in result["corrections"].values())
        points.append(Point(name, result["bits"], best, OWN if own_names(name) else PEER))
    return points


def psnr_points(rows: Sequence[Mapping[str, Any]], own_names: Callable[[str], bool]) -> list[Point]:
    """Highest mean PSNR over the corrections; among those that come close, the one with the fewest bits."""
    by_storage: dict[str, list[Point]] = {}
    for row in rows:
        name = row["storage"]
        kind = PRESET if name in PRESET_NAMES else OWN if own_names(name) else PEER
        if row["factor"] is None:
            by_storage.setdefault(name, []).append(Point(name, row["bits"], float(np.mean(row["psnr"])), kind))
    best = []
    for points in by_storage.values():
        highest = max(point.value for point in points)
        close = [point for point in points if point.value > highest - CLOSE_DB]
        best.append(min(close, key=lambda point: (point.bits, -point.value)))
    return best


def front(points: Sequence[Point], higher_is_better: bool) -> list[Point]:
    """The Pareto front by rising bits: no point with as few bits is better."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.bits, -point.value if higher_is_better else point.value)):
        if not kept or (point.value > kept[-1].value if higher_is_better else point.value < kept[-1].value):
            kept.append(point)
    return kept


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Writes the picture."""

    published = {peer.name for peer in peers(1, 64)}
    figure = Figure(figsize=(15, 8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    family = "demo" if "demo" in results["tensor"]["families"] else next(iter(results["tensor"]["families"]))
    errors = error_points(results["tensor"]["families"], lambda name: name not in published, family)
    left.set_yscale("log")
    videos = psnr_points(results["video"], lambda name: name not in published)
    _panel(left, errors, f"relative error of the attention output, {family} tensors (lower is better)", False)
    _panel(right, videos, "PSNR in dB against the bf16 run (higher is better)", True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout must not change once labels are placed
    _label(left, errors)
    _label(right, videos)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(axes: Axes, points: Sequence[Point], title: str, higher_is_better: bool) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: f"{bits:g}"))
    axes.set_xlabel("stored bits per element, everything counted")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    best = front(points, higher_is_better)
    axes.plot([p.bits for p in best], [p.value for p in best], color="#999999", linewidth=1, label="Pareto front")
    for kind, (color, marker) in STYLES.items():
        chosen = [point for point in points if point.kind == kind]
        if chosen:
            size, bits, values = 140 if kind == PRESET else 36, [p.bits for p in chosen], [p.value for p in chosen]
            axes.scatter(bits, values, size, color, marker=marker, label=kind, zorder=3)
    axes.margins(0.1, 0.08)
    axes.set_xlim(min(p.bits for p in points) / SIDE_MARGIN, max(p.bits for p in points) * SIDE_MARGIN)
    axes.legend(loc="lower right" if higher_is_better else "upper right", fontsize=8)


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Writes names where they cover neither a point nor another name. The figure must have its final layout."""
    places = axes.transData.transform([(p.bits, p.value) for p in points])
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in places]
    if (legend := axes.get_legend()) is not None:
        taken.append(legend.get_window_extent())
    inside = axes.get_window_extent()
    for point in sorted(points, key=lambda point: point.value):
        tried = []
        for offset in OFFSETS:
            name = _name(axes, point, offset)
            name.get_window_extent()  # gives it its final position
            box = Text.get_window_extent(name)  # without its line
            is_inside = inside.x0 < box.x0 and box.x1 < inside.x1 and inside.y0 < box.y0 and box.y1 < inside.y1
            tried.append((sum(box.overlaps(other) for other in taken) + 10 * (not is_inside), len(tried), name, box))
            if tried[-1][0] == 0:
                break
        _, _, kept, box = min(tried, key=lambda each: each[:2])
        for _, _, name, _ in tried:
            if name is not kept:
                name.remove()
        taken.append(box)


def _name(axes: Axes, point: Point, offset: tuple[int, int]) -> Annotation:
    x, y = offset
    is_far = max(abs(x), abs(y)) > SHORT_OFFSET
    return axes.annotate(
        point.name,
        (point.bits, point.value),
        offset,
        textcoords="offset points",
        fontsize=7.5,
        color=STYLES[point.kind][0],
        ha="left" if x > 0 else "right" if x < 0 else "center",
        va="center" if y == 0 else "bottom" if y > 0 else "top",
        arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.6, "shrinkB": 3} if is_far else None,
    )
