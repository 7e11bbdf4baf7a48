"""A plot of streams over memory, one line per codec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.sizing import Question, check_memory, streams_over_memory
from pagedvid.files.figure import COLORS, new_figure, save_figure
from pagedvid.units import GIB, format_bytes

NUM_POINTS = 120


class _Label(NamedTuple):
    height: float
    text: str
    color: str


def draw_streams_over_memory(question: Question, choices: Mapping[str, StreamCodecs], path: Path) -> None:
    """Writes the picture. Raises ConfigError when matplotlib is missing or the file cannot be written."""
    check_memory(question)
    figure = new_figure(path)
    axes = figure.add_subplot()
    highest = _curves(axes, question, choices)
    _frame(axes, question, highest)
    save_figure(figure, path)


def _curves(axes: Any, question: Question, choices: Mapping[str, StreamCodecs]) -> float:
    """Draws a labelled curve per choice; returns the greatest height, at least 1."""
    here, top = question.memory_bytes, 2 * question.memory_bytes
    memories = sorted({here, *(top * i // NUM_POINTS for i in range(1, NUM_POINTS + 1))})
    ends: list[_Label] = []
    points: list[_Label] = []
    for number, (name, codecs) in enumerate(choices.items()):
        color = COLORS[number % len(COLORS)]
        counts = streams_over_memory(question, codecs, memories)
        at_memory = counts[memories.index(here)]
        axes.step([memory / GIB for memory in memories], counts, where="post", color=color, linewidth=2)
        axes.plot([here / GIB], [at_memory], "o", color=color, markersize=6)
        ends.append(_Label(counts[-1], name, color))
        points.append(_Label(at_memory, str(at_memory), color))
    highest = max(1.0, *(end.height for end in ends))
    for label in _apart(ends, 0.05 * highest):
        axes.text(1.01 * top / GIB, label.height, label.text, color=label.color, va="center", fontweight="bold")
    for label in _apart(points, 0.05 * highest):
        backing = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5}
        axes.text(
            0.985 * here / GIB,
            label.height,
            label.text,
            color=label.color,
            ha="right",
            va="bottom",
            fontweight="bold",
            bbox=backing,
        )
    return highest


def _frame(axes: Any, question: Question, highest: float) -> None:
    """Draws everything but the curves."""
    here = question.memory_bytes
    axes.axvline(here / GIB, color="#bbbbbb", linewidth=1, zorder=0)
    axes.text(here / GIB, 1.02 * highest, f" {format_bytes(here)}", color="#777777")
    axes.set_xlim(0, 2 * here / GIB)
    axes.set_ylim(0, 1.08 * highest)
    axes.set_xlabel(f"device memory, GiB ({format_bytes(question.weights_bytes)} of it for weights)")
    axes.set_ylabel("streams that fit")
    axes.locator_params(axis="y", integer=True)
    axes.set_title(
        f"{question.card.name}, {question.resolution}, window {question.look_back} "
        f"({question.size.seconds:.3g} s of history)",
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")


def _apart(labels: list[_Label], gap: float) -> list[_Label]:
    """The labels from bottom to top, moved up where two would be closer than `gap`."""
    placed: list[_Label] = []
    for label in sorted(labels):
        lowest = placed[-1].height + gap if placed else label.height
        placed.append(label._replace(height=max(label.height, lowest)))
    return placed
