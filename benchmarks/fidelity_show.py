"""Prints a run of fidelity.py: tables of 80 columns, and what they show in words; draws the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drift import drift_table
from drift import from_rows as drift_of
from encoding_cost import cost_table
from fidelity_answers import answers
from fidelity_plot import draw
from lab import COMPARED_CHUNKS
from tensor_families import DEMO
from tensor_level import error_table, families_table, mass_table, study_table
from video_level import from_rows as videos_of
from video_level import gain_table, sweep_table, video_table

Row = Mapping[str, Any]


def show(results: Mapping[str, Any], plot: Path) -> None:
    """All parts that ran; the plot needs tensors and videos."""
    tables = {"tensor": tensor_tables, "video": video_tables, "drift": drift_tables, "cost": cost_tables}
    for part, to_tables in tables.items():
        if part in results:
            for title, table in to_tables(results[part]).items():
                print(f"\n{title}\n\n{table}")
    print("\n" + "\n\n".join(answers(results)))
    if "video" in results and "tensor" in results:
        draw(results, plot)
        print(f"\ndrawn to {plot}")


def tensor_tables(tensor: Mapping[str, Any]) -> dict[str, str]:
    """By title."""
    families = tensor["families"]
    tables = {f"{name}: relative error of the attention output": error_table(families[name]) for name in families}
    if DEMO in families:
        tables[f"{DEMO}: shift of the attention mass on cached keys"] = mass_table(families[DEMO])
    for correction in ("off", "variance"):
        tables[f"relative error by family, {correction}"] = families_table(families, correction)
    for storage, by_family in tensor["studies"].items():
        tables[f"{storage}, every form of the correction: {DEMO}, and the mean of the others"] = study_table(
            by_family, DEMO
        )
    return tables


def video_tables(rows: Sequence[Row]) -> dict[str, str]:
    """By title."""
    results = videos_of(rows)
    num_prompts = len(rows[0]["psnr"])
    tables = {
        f"{num_prompts} prompts, PSNR in dB of chunks {COMPARED_CHUNKS} against the bf16 cache": video_table(results),
        "what corrections bring, prompt by prompt": gain_table(results),
    }
    if sweep := sweep_table(results):
        tables["strength of the correction"] = sweep
    return tables


def drift_tables(rows: Sequence[Row]) -> dict[str, str]:
    """By title."""
    num_videos, num_windows = len(rows[0]["right"]), len(rows[0]["right"][0])
    return {
        f"long videos: {num_videos} prompts, the first and the last of {num_windows} windows": drift_table(
            drift_of(rows)
        )
    }


def cost_tables(rows: Sequence[Row]) -> dict[str, str]:
    """By title."""
    return {"storing a chunk, next to its denoise steps": cost_table(rows)}
