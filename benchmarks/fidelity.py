"""How much of attention survives storage, over honest bits: pagedvid's codecs and published ones on the same tensors.

Tensor level, for each family of tensors (the demo model's own, and synthetic ones with known traits), means over
videos, layers, heads and forwards:

bits      stored bits per element, mean of keys and values, everything counted
keys      relative error of the attention output with stored keys and exact values, uncorrected
vals      the same with stored values and exact keys
off ...   both stored, under each correction (attention_error.py says what they are)
dP, dPm   shift of the attention mass on cached keys, uncorrected, and measured

Transform codecs ("kltROWS") fill pages of ROWS rows of head_dim bytes with 128 tokens, or as many whole blocks as go
into 128; "1-frame" leaves the resemblance of frames unused. They are calibrated on videos that are not measured.

    python benchmarks/fidelity.py
    python benchmarks/fidelity.py --prompts 4 --families demo "outlier channels"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_error import CORRECTIONS, measure, store
from families import FAMILIES, draw_family
from report import format_table, make_parser, use_threads, write_report
from schemes import Scheme, klt_scheme, own_schemes, peer_schemes
from tensors import Sample, capture

from pagedvid.models.demo.captions import caption
from pagedvid.models.demo.model import DemoModel
from pagedvid.models.demo.world import random_scene

KLT_ROWS = (18, 24, 36)
"""Rows of a page of about 128 tokens: 1.125, 1.5 and 2.25 bits."""
KLT_TOKENS = 128
Videos = list[list[Sample]]
"""Samples by layer, by video."""


def demo_videos(weights: Path | None, num_videos: int, seed: int, num_chunks: int) -> Videos:
    """Videos of the demo model, the first ones of any larger number."""
    model = DemoModel.load(weights)
    generator = np.random.default_rng(seed)
    return [capture(model, caption(random_scene(generator)), seed + i, num_chunks) for i in range(num_videos)]


def schemes_for(calibration: Videos) -> list[Scheme]:
    """Every row of a family's table."""
    num_chunks, _, chunk_tokens, head_dim = calibration[0][0].k_CHTD.shape
    layers = [list(samples) for samples in zip(*calibration, strict=True)]
    num_frames = chunk_tokens // calibration[0][0].tokens_per_frame
    klt = [klt_scheme(layers, KLT_TOKENS // num_frames, rows, num_frames, f"klt{rows}") for rows in KLT_ROWS]
    still = klt_scheme(layers, KLT_TOKENS, KLT_ROWS[-1], 1, f"klt{KLT_ROWS[-1]} 1-frame")
    return [*peer_schemes(num_chunks * chunk_tokens, head_dim), *own_schemes(head_dim), *klt, still]


def measure_scheme(scheme: Scheme, videos: Videos) -> dict[str, Any]:
    """Bits, and by correction and quantity the values [video][layer][forward][head]."""
    bits: list[float] = []
    values: dict[str, dict[str, list[Any]]] = {}
    for samples in videos:
        for sample in samples:
            stored = store(scheme, sample)
            bits.append((stored.key_bits + stored.value_bits) / 2)
            for number in range(len(sample.q_LHTD)):
                for correction, quantities in measure(sample, stored, number).items():
                    for quantity, by_head in quantities.items():
                        values.setdefault(correction, {}).setdefault(quantity, []).append(by_head.tolist())
    return {"bits": sum(bits) / len(bits), "values": values}


def family_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per scheme, by rising bits."""

    def mean(result: Mapping[str, Any], correction: str, quantity: str) -> str:
        values = result["values"].get(correction)
        return f"{np.mean(values[quantity]):.3f}" if values else "-"

    rows = [
        (
            name,
            f"{result['bits']:.2f}",
            mean(result, "off", "error of keys"),
            mean(result, "off", "error of values"),
            *(mean(result, correction, "error") for correction in CORRECTIONS),
            mean(result, "off", "dP"),
            mean(result, "measured", "dP"),
        )
        for name, result in sorted(results.items(), key=lambda item: item[1]["bits"])
    ]
    shown = ("off", "formula", "var.", "meas.")
    return format_table(("scheme", "bits", "keys", "vals", *shown, "dP", "dPm"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes the JSON file."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    results: dict[str, Any] = {}
    for family in arguments.families:
        total = arguments.calibration_prompts + arguments.prompts
        if family == "demo":
            videos = demo_videos(arguments.weights, total, arguments.seed, arguments.chunks)
        else:
            videos = [[draw_family(family, arguments.seed + i)] for i in range(total)]
        calibration, measured = videos[: arguments.calibration_prompts], videos[arguments.calibration_prompts :]
        results[family] = {}
        with torch.no_grad():
            for scheme in schemes_for(calibration):
                print(f"{family}: {scheme.name}", file=sys.stderr, flush=True)
                results[family][scheme.name] = measure_scheme(scheme, measured)
        print(f"\n{family}, {len(measured)} videos\n\n{family_table(results[family])}")
    write_report(arguments, "fidelity", {"tensor_level": results})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = make_parser("fidelity", __doc__)
    parser.add_argument("--prompts", type=int, default=8, help="videos that are measured, by family")
    parser.add_argument("--calibration-prompts", type=int, default=8, help="other videos, for calibration")
    parser.add_argument("--chunks", type=int, default=4, help="cached chunks of the demo model's videos")
    parser.add_argument("--families", nargs="*", choices=["demo", *FAMILIES], default=["demo", *FAMILIES])
    parser.add_argument("--weights", type=Path, help="folder of the demo model's weights (default: the shipped ones)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
