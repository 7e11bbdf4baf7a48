"""How much of attention survives storage: every scheme on the same queries, keys and values.

Means over videos, layers, heads and forwards; the JSON file also has them by layer and head.

bits           stored bits per element, mean of keys and values, everything but model-wide tables counted
keys, vals     relative error of the attention output with stored keys and exact values, and the other way round
off ... log Z  both stored, under each correction (corrections.py); "-" where levels are not uniform
dP             shift of the attention mass on cached keys; |dP| is its size head by head
dlogZ          shift of log Z over the cached keys
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attention_error import measure, store
from corrections import CORRECTIONS, Correction
from report import format_table
from schemes import Scheme
from tensors import Sample

Videos = list[list[Sample]]
"""Samples by layer, by video."""
Summary = dict[str, Any]
DIGITS = 5


@dataclass(frozen=True)
class Family:
    """Videos with something in common, and everything that stores their keys and values."""

    name: str
    videos: Videos
    schemes: list[Scheme]


def summarize(values_VLFH: np.ndarray) -> Summary:
    """Mean, its standard error over the videos, mean size, and the means of layers and heads."""
    by_video = values_VLFH.mean(axis=(1, 2, 3))
    error = by_video.std(ddof=1) / len(by_video) ** 0.5 if len(by_video) > 1 else float("nan")
    return {
        "mean": round(float(values_VLFH.mean()), DIGITS),
        "error": round(float(error), DIGITS),
        "size": round(float(np.abs(values_VLFH).mean()), DIGITS),
        "by_layer_and_head": values_VLFH.mean(axis=(0, 2)).round(DIGITS).tolist(),
    }


def measure_scheme(
    scheme: Scheme, videos: Videos, corrections: Mapping[str, Correction] = CORRECTIONS
) -> dict[str, Any]:
    """{"bits", "corrections": by correction and quantity a summary}."""
    bits: list[float] = []
    values: dict[tuple[str, str], list[Any]] = {}
    for sample in (sample for samples in videos for sample in samples):
        readout = store(scheme, sample)
        bits.append((readout.stored.key_bits + readout.stored.value_bits) / 2)
        for number in range(len(sample.q_LHTD)):
            for correction, quantities in measure(readout, number, corrections).items():
                for quantity, by_head in quantities.items():
                    values.setdefault((correction, quantity), []).append(by_head.double().numpy())
    shape = (len(videos), len(videos[0]), len(videos[0][0].q_LHTD), -1)
    by_correction: dict[str, dict[str, Summary]] = {}
    for (correction, quantity), by_forward in values.items():
        by_correction.setdefault(correction, {})[quantity] = summarize(np.stack(by_forward).reshape(shape))
    return {"bits": sum(bits) / len(bits), "corrections": by_correction}


def measure_family(family: Family, corrections: Mapping[str, Correction] = CORRECTIONS) -> dict[str, Any]:
    """By scheme, what `measure_scheme` says."""
    results = {}
    with torch.no_grad():
        for scheme in family.schemes:
            print(f"{family.name}: {scheme.name}", file=sys.stderr, flush=True)
            results[scheme.name] = measure_scheme(scheme, family.videos, corrections)
    return results


def mean(result: Mapping[str, Any], correction: str, quantity: str, what: str = "mean", sign: str = "") -> str:
    """A cell."""
    summary = result["corrections"].get(correction)
    return f"{summary[quantity][what]:{sign}.3f}" if summary else "-"


def by_bits(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Schemes by rising bits."""
    return sorted(results.items(), key=lambda item: item[1]["bits"])


SHORT = {"formula": "form.", "variance": "var.", "measured": "meas."}


def error_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Relative output errors of one family, one row per scheme."""
    shown = ("off", *CORRECTIONS)
    rows = [
        (
            name,
            f"{result['bits']:.2f}",
            mean(result, "off", "error of keys"),
            mean(result, "off", "error of values"),
            *(mean(result, correction, "error") for correction in shown),
        )
        for name, result in by_bits(results)
    ]
    return format_table(("scheme", "bits", "keys", "vals", *(SHORT.get(name, name) for name in shown)), rows)


def mass_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Shift of the cached mass of one family under each correction, and its size head by head for the extremes."""
    shown = ("off", *CORRECTIONS)
    headers = ("scheme", *(SHORT.get(name, name) for name in shown), "|off|", "|meas.|")
    rows = [
        (
            name,
            *(mean(result, correction, "dP", sign="+") for correction in shown),
            *(mean(result, correction, "dP", "size") for correction in ("off", "measured")),
        )
        for name, result in by_bits(results)
    ]
    return format_table(headers, rows)


def families_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]], correction: str) -> str:
    """Output errors under one correction, one column per family, headed by the first word of its name."""
    first = next(iter(results.values()))
    rows = [
        (name, f"{result['bits']:.2f}", *(mean(family[name], correction, "error") for family in results.values()))
        for name, result in by_bits(first)
    ]
    return format_table(("scheme", "bits", *(name.split()[0] for name in results)), rows)


def study_table(by_family: Mapping[str, Mapping[str, Any]], demo: str) -> str:
    """One scheme under many corrections: means of the demo model, and over the other families."""
    others = [result for name, result in by_family.items() if name != demo]

    def cells(results: Sequence[Mapping[str, Any]], correction: str) -> list[str]:
        def over(quantity: str, what: str) -> float:
            return float(np.mean([result["corrections"][correction][quantity][what] for result in results]))

        if not results:
            return ["-"] * 3
        return [
            f"{over('error', 'mean'):.4f}",
            f"{over('dP', 'mean'):+.4f}",
            f"{over('dP', 'size'):.4f}",
        ]

    names = next(iter(by_family.values()))["corrections"]
    own = [by_family[demo]] if demo in by_family else []
    rows = [(name, *cells(own, name), *cells(others, name)) for name in names]
    return format_table(("correction", "error", "dP", "|dP|", "families", "dP", "|dP|"), rows)
