"""Prints the results of fidelity.py as tables of 80 columns, says in words what they show, and draws the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fidelity import drift, video
from fidelity.answers import answers
from fidelity.cost import cost_table
from fidelity.fp8 import fp8_tables
from fidelity.plot import draw
from fidelity.tensor import DEMO, error_table, families_table, mass_table, study_table
from lib.lab import COMPARED_CHUNKS

Row = Mapping[str, Any]


def show(results: Mapping[str, Any], plot: Path) -> None:
    """Shows all parts that ran; draws the plot if tensors and videos did."""
    tables = {
        "tensor": tensor_tables,
        "video": video_tables,
        "drift": drift_tables,
        "cost": cost_tables,
        "fp8": fp8_tables,
    }
    for part, to_tables in tables.items():
        if part in results:
            for title, table in to_tables(results[part]).items():
                print(f"\n{title}\n\n{table}")
    print("\n" + "\n\n".join(answers(results)))
    if "video" in results and "tensor" in results:
        draw(results, plot)
        print(f"\ndrawn to {plot}")


def tensor_tables(tensor: Mapping[str, Any]) -> dict[str, str]:
    """Tables by title."""
    families = tensor["families"]
    tables = {f"{name}: relative error of the attention output": error_table(families[name]) for name in families}
    if DEMO in families:
        tables[f"{DEMO}: shift of the attention mass on cached keys"] = mass_table(families[DEMO])
    for correction in ("off", "variance"):
        tables[f"relative error by family, {correction}"] = families_table(families, correction)
    for storage, by_family in tensor["studies"].items():
        tables[f"{storage}, every form of the correction: {DEMO}, and the mean of the others"] = study_table(by_family)
    return tables


def video_tables(rows: Sequence[Row]) -> dict[str, str]:
    """Tables by title."""
    results = video.from_rows(rows)
    num_prompts = len(rows[0]["psnr"])
    tables = {
        f"{num_prompts} prompts, PSNR in dB of chunks {COMPARED_CHUNKS} against bf16": video.video_table(results),
        "what corrections bring, prompt by prompt": video.gain_table(results),
    }
    if sweep := video.sweep_table(results):
        tables["strength of the correction"] = sweep
    return tables


def drift_tables(rows: Sequence[Row]) -> dict[str, str]:
    """Tables by title."""
    num_videos, num_windows = len(rows[0]["right"]), len(rows[0]["right"][0])
    return {
        f"long videos: {num_videos} prompts, the first and the last of {num_windows} windows": drift.drift_table(
            drift.from_rows(rows)
        )
    }


def cost_tables(rows: Sequence[Row]) -> dict[str, str]:
    """Tables by title."""
    return {"storing a chunk, compared with its denoise steps": cost_table(rows)}
