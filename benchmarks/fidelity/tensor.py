"""The part "tensor": how much of attention survives storage, with every scheme on the same queries, keys and values.

Means over videos, layers, heads and forwards; the JSON file also has them by layer and head.

bits           stored bits per element, mean of keys and values; everything counts but model-wide tables
keys, vals     relative error of the attention output with stored keys and exact values, and the other way round
off ... log Z  the same with both stored, under each correction (lib/corrections.py); "-" if levels are not uniform
dP             shift of the attention mass on cached keys; |dP|: mean of its magnitude over the heads
dlogZ          shift of log Z over the cached keys
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fidelity.video import CODECS, FACTORS, KLT_CODECS
from lib.attention_error import measure, store
from lib.corrections import CORRECTIONS, Correction, factored, granularities, samplings
from lib.quality import draw_tasks
from lib.report import format_table, note
from lib.samples import Sample, capture, draw_family
from lib.schemes import Scheme, paged, paged_scheme, peer_scheme
from pagedvid.calibration.fit import calibrate
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.spec import PageFormat, block_frames
from pagedvid.codecs.tables_file import Calibration, load_calibration
from pagedvid.models.demo.weights import load_demo
from pagedvid.models.registry import model_tables
from peers.catalogue import peers

DEMO = "demo"
CACHED_CHUNKS = (2, 4)
"""For the demo model's videos alternately."""
CALIBRATION_VIDEOS = 8
"""Videos that calibrate a synthetic family; none of them is measured."""
SAMPLED_QUERIES = (16, 32, 128)
Videos = list[list[Sample]]
"""Samples [video][layer]."""
Summary = dict[str, Any]
DIGITS = 5
SHORT = {"formula": "form.", "variance": "var.", "measured": "meas."}
"""Headers of columns."""


@dataclass(frozen=True)
class Family:
    """Videos with something in common, and the schemes to store their keys and values with."""

    name: str
    videos: Videos
    schemes: list[Scheme]
    calibration: Calibration | None
    """klt tables; None: klt codecs cannot be tried."""


def summarize(values_VLFH: np.ndarray) -> Summary:
    """Mean, its standard error over the videos, mean magnitude, and means by layer and head."""
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
    """{"bits", "corrections": a summary by correction and quantity}."""
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
    """What `measure_scheme` returns, by scheme."""
    results = {}
    with torch.no_grad():
        for scheme in family.schemes:
            note(f"{family.name}: {scheme.name}")
            results[scheme.name] = measure_scheme(scheme, family.videos, corrections)
    return results


@dataclass(frozen=True)
class Sampling:
    """Which videos are measured, and with what."""

    num_videos: int
    seed: int
    storages: Sequence[str] | None = None
    """Rows of the tables; None: all."""
    weights: Path | None = None
    """Folder of the demo model; None: the shipped one."""
    studied: Sequence[str] = ()
    """Codecs for which every form of the correction is compared."""

    def draw(self, name: str) -> Family:
        """The family of that name."""
        return demo_family(self) if name == DEMO else synthetic_family(name, self)

    def measure(self, name: str) -> dict[str, Any]:
        """{"schemes": what `measure_family` returns, "studies": what `study_corrections` returns, by codec}."""
        family = self.draw(name)
        studies = {storage: study_corrections(family, storage) for storage in self.studied}
        return {"schemes": measure_family(family), "studies": studies}


def demo_family(sampling: Sampling) -> Family:
    """Videos for the prompts of the part "video". klt codecs take part if the model has tables."""
    model, videos = load_demo(sampling.weights), []
    for number, task in enumerate(draw_tasks(sampling.num_videos, sampling.seed)):
        num_chunks = CACHED_CHUNKS[number % len(CACHED_CHUNKS)]
        videos.append(capture(model, task.request.prompt, task.request.seed, num_chunks))
    tables = model_tables("demo", sampling.weights)
    return _family(DEMO, videos, None if tables is None else load_calibration(tables), sampling.storages)


def synthetic_family(name: str, sampling: Sampling) -> Family:
    """Drawn videos. klt tables are calibrated on further videos of the family."""
    num_videos = sampling.num_videos
    videos = [[draw_family(name, sampling.seed + i)] for i in range(num_videos + CALIBRATION_VIDEOS)]
    return _family(name, videos[:num_videos], calibrate_on(name, videos[num_videos:]), sampling.storages)


def calibrate_on(name: str, videos: Videos) -> Calibration:
    """klt tables of all layers."""
    layers = [list(samples) for samples in zip(*videos, strict=True)]
    layout = _layout(videos)
    tables = [calibrate(layers, kind, layout) for kind in ("keys", "values")]
    return Calibration.of(name, *tables, calibrated_on=f"{len(videos)} videos")


def study_corrections(family: Family, storage: str) -> dict[str, Any]:
    """One codec with every form, granularity, strength and sampling of the correction."""
    codecs = paged(storage, family.videos[0][0].k_CHTD.shape[-1])
    note(f"{family.name}: corrections of {storage}")
    scheme = scheme_of(storage, family.videos, None)
    page = PageFormat(family.videos[0][0].k_CHTD.shape[-1], codecs.rows)
    corrections = granularities(codecs.pair.keys.page_tokens(page))
    corrections |= {f"b x {factor:g}": factored(factor) for factor in FACTORS}
    corrections |= samplings(SAMPLED_QUERIES)
    with torch.no_grad():
        return measure_scheme(scheme, family.videos, corrections)


def _family(name: str, videos: Videos, calibration: Calibration | None, storages: Sequence[str] | None) -> Family:
    num_chunks, _, chunk_tokens, head_dim = videos[0][0].k_CHTD.shape
    schemes = [peer_scheme(peer) for peer in peers(num_chunks * chunk_tokens, head_dim)]
    codecs = CODECS if calibration is None else CODECS + KLT_CODECS
    schemes += [scheme_of(codec, videos, calibration) for codec in codecs]
    wanted = [scheme for scheme in schemes if storages is None or scheme.name in storages]
    return Family(name, videos, wanted, calibration)


def scheme_of(codec: str, videos: Videos, calibration: Calibration | None) -> Scheme:
    """The scheme of a codec, or of a pair such as "int4/int2", for these videos."""
    sample, layout = videos[0][0], _layout(videos)
    head_dim, num_heads = sample.k_CHTD.shape[-1], sample.k_CHTD.shape[1]
    codecs = paged(codec, head_dim)
    page = PageFormat(head_dim, codecs.rows, layout.tokens_per_frame, layout.num_frames)
    return paged_scheme(codecs, page, CodecBook(page, num_heads, calibration))


def _layout(videos: Videos) -> BlockLayout:
    sample = videos[0][0]
    return BlockLayout(sample.tokens_per_frame, block_frames(sample.k_CHTD.shape[2] // sample.tokens_per_frame))


# ---------------------------------------------------------------- tables


def mean(result: Mapping[str, Any], correction: str, quantity: str, what: str = "mean", sign: str = "") -> str:
    """A cell of a table."""
    summary = result["corrections"].get(correction)
    return f"{summary[quantity][what]:{sign}.3f}" if summary else "-"


def by_bits(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Schemes by rising bits."""
    return sorted(results.items(), key=lambda item: item[1]["bits"])


def error_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Relative errors of the output for one family, one row per scheme."""
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
    """Shift of the cached mass for one family under each correction, and its magnitude by head for two of them."""
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
    """Relative errors of the output under one correction. A column per family, headed by the first word of its name."""
    first = next(iter(results.values()))
    rows = [
        (name, f"{result['bits']:.2f}", *(mean(family[name], correction, "error") for family in results.values()))
        for name, result in by_bits(first)
    ]
    return format_table(("scheme", "bits", *(name.split()[0] for name in results)), rows)


def study_table(by_family: Mapping[str, Mapping[str, Any]]) -> str:
    """One scheme under many corrections: means of the demo model, and means over the other families."""
    others = [result for name, result in by_family.items() if name != DEMO]

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
    own = [by_family[DEMO]] if DEMO in by_family else []
    rows = [(name, *cells(own, name), *cells(others, name)) for name in names]
    return format_table(("correction", "error", "dP", "|dP|", "families", "dP", "|dP|"), rows)
