"""The part "video": whole videos from the engine, with every codec, preset and published quantizer.

All runs have the same prompts and seeds.

bits       stored bits per element of a full window; everything counts but model-wide tables
off ...    PSNR in dB against the bf16 run under each correction, over the first two chunks that read stored pages: mean
           and standard error over the prompts. Frames that differ by rounding alone have 58.9 dB
SSIM       of the same frames, uncorrected
right      percentage of what the prompt says that the whole video shows, uncorrected (the JSON file has it for bf16)
gain       difference to the same storage uncorrected, prompt by prompt, with the standard error of that difference
forced     PSNR when the history holds the reference's chunks, so that no chunk inherits the errors of another

The clusters of QVG serve one chunk of 128 tokens here, which is little, and all cached chunks in the part "tensor".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fidelity.processes import shared
from lib.caches import DEFAULT, OWN, PRESETS, REFERENCE, Case
from lib.lab import Lab
from lib.quality import Task, score_attributes
from lib.report import format_table, note
from pagedvid.codecs.registry import read_codec
from pagedvid.models.demo.weights import load_demo
from pagedvid.quality.metrics import mean_and_error, psnr, ssim

CODECS = ("int4", "int4/int2", "int2", "int2-pair-s8", "int2-post", "token4-g64", "token2-g64", "hadamard2-g64")
KLT_CODECS = ("klt3", "klt1.5/klt3", "klt2.25", "klt2", "klt1/klt2", "klt1.5", "klt1")
STUDIED = ("token2-g64", "int2")
"""The paper's quantizer and the package's: here with multiples of b, in the part "tensor" with all forms of b."""
FACTORS = (0.5, 2.0, 4.0)
"""Multiples of b, besides 0 (off) and 1 (formula)."""
MODES = ("off", "formula", "variance", "measured")
Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run of all videos."""

    case: Case
    is_forced: bool = False
    """Whether to run it with the reference's history too."""


def jobs(lab: Lab, codecs: Sequence[str] | None = None) -> list[Job]:
    """Every row of the tables. `codecs`: the storages to keep; None: all."""
    uniform = {name: peer.uniform for name, peer in lab.caches.peers().items()}
    cases = []
    for name, has_formula in uniform.items():
        cases += [Case(name, mode) for mode in ("off", "formula", "variance") if mode != "formula" or has_formula]
    for name in CODECS + KLT_CODECS * lab.caches.has_tables:
        has_formula = read_codec(name.partition("/")[0]).has_step_sizes
        cases += [Case(name, mode) for mode in MODES if mode != "formula" or has_formula]
    for name in (DEFAULT, *PRESETS) if lab.caches.has_tables else (DEFAULT,):
        is_corrected = lab.caches.settings(Case(name, OWN)).correction != "off"
        cases += [Case(name, mode) for mode in ("off", OWN) if mode == "off" or is_corrected]
    cases += [Case(name, "formula", factor) for name in STUDIED for factor in FACTORS]
    wanted = [case for case in cases if codecs is None or case.storage in codecs]
    return [Job(case, is_forced=case.storage in STUDIED) for case in wanted]


@dataclass(frozen=True)
class Bench:
    """The videos to make, and the reference to compare them with."""

    lab: Lab
    tasks: Sequence[Task]
    reference: np.ndarray
    """Frames of the bf16 run, [videos, frames, H, W, 3]."""
    history: Sequence[Tensor]
    """Clean latents of a bf16 loop by chunk."""
    forced_reference: np.ndarray
    """Frames of that loop."""

    @staticmethod
    def of(lab: Lab, tasks: Sequence[Task]) -> Bench:
        """Makes the reference."""
        note(f"videos: {REFERENCE}")
        made = lab.loop(lab.cache(REFERENCE)).generate()
        return Bench(lab, tasks, lab.engine_frames(lab.cache(REFERENCE)), made.latents, made.whole_videos())

    def measure(self, job: Job) -> Result:
        """Bits, and for every prompt PSNR, SSIM and score."""
        note(f"videos: {job.case}")
        cache = self.lab.cache(job.case)
        videos = self.lab.engine_frames(cache)
        pairs = list(zip(self.lab.compared(videos), self.lab.compared(self.reference), strict=True))
        result: Result = {
            "bits": self.lab.caches.bits(cache),
            "psnr": [round(psnr(a, b), 4) for a, b in pairs],
            "ssim": [round(ssim(a, b), 6) for a, b in pairs],
            "right": score_attributes(self.tasks, videos, 0)["all"],
        }
        if job.is_forced:
            made = self.lab.loop(self.lab.cache(job.case)).generate(self.history)
            forced = zip(self.lab.compared(made.whole_videos()), self.lab.compared(self.forced_reference), strict=True)
            result["forced_psnr"] = [round(psnr(a, b), 4) for a, b in forced]
        return result


_bench: Bench | None = None
"""What this process was started with."""


def _start(lab: tuple[Any, ...], compared: tuple[Any, ...]) -> None:
    """Loads the model: everything else is passed between processes."""
    global _bench
    _bench = Bench(Lab(load_demo(lab[-1]), *lab), *compared)


def _measure(job: Job) -> Result:
    assert _bench is not None  # _start ran
    return _bench.measure(job)


def measure_jobs(bench: Bench, jobs: Sequence[Job], num_processes: int) -> dict[Case, Result]:
    """Results by case."""
    lab = (bench.lab.requests, bench.lab.num_frames, bench.lab.num_denoise_steps, bench.lab.weights)
    compared = (bench.tasks, bench.reference, bench.history, bench.forced_reference)
    results = shared(_measure, jobs, num_processes, _start, (lab, compared))
    return dict(zip([job.case for job in jobs], results, strict=True))


def text(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard error; `digits` of the error."""
    mean, error = mean_and_error(values)
    return f"{mean:.2f}±{error:.{digits}f}"


def gain(result: Result, off: Result, what: str = "psnr") -> list[float]:
    """Difference prompt by prompt."""
    return np.subtract(result[what], off[what]).tolist()


def video_table(results: Mapping[Case, Result]) -> str:
    """One row per storage, by rising bits."""
    rows = []
    for storage, by_mode in _by_storage(results):
        off = by_mode["off"]
        cells = [text(by_mode[mode]["psnr"], digits=1) if mode in by_mode else "-" for mode in MODES]
        right = f"{100 * np.mean(off['right']):.1f}"
        rows.append((storage, f"{off['bits']:.2f}", *cells, f"{np.mean(off['ssim']):.3f}", right))
    return format_table(("storage", "bits", "off", "formula", "variance", "measured", "SSIM", "right"), rows)


def gain_table(results: Mapping[Case, Result]) -> str:
    """Gain in dB from every correction."""
    rows = []
    for storage, by_mode in _by_storage(results):
        off = by_mode["off"]
        cells = [text(gain(by_mode[mode], off)) if mode in by_mode else "-" for mode in (*MODES[1:], OWN)]
        rows.append((storage, f"{np.mean(off['psnr']):.2f}", *cells))
    return format_table(("gain in dB", "off", "formula", "variance", "measured", "preset's"), rows)


def sweep_table(results: Mapping[Case, Result]) -> str:
    """b times 0, 0.5, 1, 2, 4, and the other corrections; empty if no multiples were measured."""
    rows: list[tuple[str, ...]] = []
    for storage in STUDIED:
        cases = [Case(storage), *(Case(storage, "formula", factor) for factor in FACTORS), Case(storage, "formula")]
        order = {"off": 0.0, "variance": 8.0, "measured": 9.0}
        cases += [Case(storage, "variance"), Case(storage, "measured")]
        for case in sorted(cases, key=lambda case: case.factor or order.get(case.correction, 1.0)):
            if case not in results:
                continue
            result, off = results[case], results[Case(storage)]
            psnrs = [text(result["psnr"]), text(gain(result, off))]
            forced = [text(result["forced_psnr"]), text(gain(result, off, "forced_psnr"))]
            rows.append((str(case), *psnrs, *forced))
    return format_table(("storage", "PSNR dB", "gain", "forced dB", "gain"), rows) if rows else ""


def _by_storage(results: Mapping[Case, Result]) -> list[tuple[str, dict[str, Result]]]:
    """Results without a factor, by storage and correction; storages by rising bits."""
    by_storage: dict[str, dict[str, Result]] = {}
    for case, result in results.items():
        if case.factor is None:
            by_storage.setdefault(case.storage, {})[case.correction] = result
    return sorted(by_storage.items(), key=lambda item: item[1]["off"]["bits"])


def to_rows(results: Mapping[Case, Result]) -> list[Result]:
    """For the JSON file."""
    return [
        {"storage": case.storage, "correction": case.correction, "factor": case.factor, **result}
        for case, result in results.items()
    ]


def from_rows(rows: Sequence[Mapping[str, Any]]) -> dict[Case, Result]:
    """The inverse of `to_rows`."""
    return {Case(row["storage"], row["correction"], row["factor"]): dict(row) for row in rows}
