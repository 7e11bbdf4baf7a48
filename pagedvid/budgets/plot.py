"""A picture of a profile: the error of every table by the pages of its rung, and what is chosen for a number of bits.

Left, a line for every (layer, KV head), keys and values apart; a dot marks the rung that was chosen. Right, the bits
per value of every table, and how many chunks its head keeps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pagedvid.budgets.profile import Profile
from pagedvid.budgets.spend import HeadStorage, Spending
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.files.figure import COLORS, new_figure, save_figure

KINDS = ("keys", "values")
TINY = 1e-12
"""Errors below it are drawn there: the axis is logarithmic."""


def draw_profile(profile: Profile, spending: Spending, page: PageFormat, path: Path) -> None:
    """Writes the picture of a profile and of one way to spend bits by it. Raises ConfigError."""
    figure = new_figure(path, 12, 6.5)
    bits = [
        8 * page.num_bytes * read_codec(rung).num_pages(page, profile.chunk_tokens)
        / (page.head_dim * profile.chunk_tokens)
        for rung in profile.rungs
    ]  # fmt: skip
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
    for row, kind in enumerate(KINDS):
        errors_LHR = (profile.keys_PLHR if kind == "keys" else profile.values_PLHR).mean(0)
        chosen = [[profile.rungs.index(getattr(stored, kind)) for stored in heads] for heads in spending.heads]
        _draw_curves(figure.add_subplot(grid[row, 0]), kind, bits, profile.rungs, errors_LHR, chosen)
        given = [[bits[number] for number in heads] for heads in chosen]
        _draw_map(figure, figure.add_subplot(grid[row, 1]), kind, given, spending.heads, bits[-1])
    figure.suptitle(
        f"{len(profile.prompts)} prompts; {spending.bits:.2f} bits per value spent over the whole window", fontsize=11
    )
    save_figure(figure, path)


def _draw_curves(
    axes: Any, kind: str, bits: list[float], rungs: tuple[str, ...], errors_LHR: Tensor, chosen: list[list[int]]
) -> None:
    for layer, (heads, errors_HR) in enumerate(zip(chosen, errors_LHR.clamp(min=TINY).tolist(), strict=True)):
        color = COLORS[layer % len(COLORS)]
        for head, number in enumerate(heads):
            label = f"layer {layer}" if head == 0 and len(chosen) <= len(COLORS) else None
            axes.plot(bits, errors_HR[head], color=color, linewidth=1, alpha=0.7, label=label)
            axes.plot([bits[number]], [errors_HR[head][number]], "o", color=color, markersize=5)
    axes.set_yscale("log")
    axes.set_xticks(bits, [f"{each:.2g}\n{rung}" for each, rung in zip(bits, rungs, strict=True)], fontsize=7)
    axes.set_ylabel("squared change of the output")
    axes.set_title(f"{kind}: bits per value and rung", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    if len(chosen) <= len(COLORS):
        axes.legend(fontsize=7, frameon=False)


def _draw_map(
    figure: Any, axes: Any, kind: str, given: list[list[float]], heads: tuple[tuple[HeadStorage, ...], ...], most: float
) -> None:
    picture = axes.imshow(given, cmap="viridis", vmin=0, vmax=most, aspect="auto")
    figure.colorbar(picture, ax=axes, label="bits per value")
    if len(heads) * len(heads[0]) <= 64:  # else the numbers would cover one another
        for layer, row in enumerate(heads):
            for head, stored in enumerate(row):
                window = f"{stored.recent_chunks}{'+s' if stored.keeps_sinks else ''}"
                color = "white" if given[layer][head] < 0.6 * most else "black"
                text = f"{given[layer][head]:.2g}\n{window}"
                axes.text(head, layer, text, ha="center", va="center", color=color, fontsize=7)
    axes.set_xlabel("KV head")
    axes.set_ylabel("layer")
    axes.set_title(f"{kind}: chosen (below: chunks kept, s: sinks)", loc="left", fontsize=10)
    axes.locator_params(integer=True)
