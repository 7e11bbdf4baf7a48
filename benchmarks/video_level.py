"""What stored keys and values do to whole videos: pagedvid's codecs and presets and the published quantizers, in the
same engine, with the same prompts and seeds.

bits       stored bits per element of a full window, everything but model-wide tables counted
off ...    PSNR in dB against the bf16 run under each correction, on the first two chunks that read stored pages, mean
           and standard error over the prompts; frames that agree but for rounding count 58.9 dB
SSIM       of the same frames, uncorrected
right      percent of what the prompt says that the whole video shows, uncorrected (bf16: see the JSON file)
gain       difference to the same storage uncorrected, prompt by prompt, with the standard error of that difference
forced     PSNR when the history holds the reference's own chunks, so that no chunk inherits the errors of another

Clusters of QVG serve one chunk here, all cached chunks at the tensor level: 128 tokens are few for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caches import DEFAULT, OWN, PRESETS, REFERENCE, Case
from frame_quality import psnr, ssim
from lab import Lab, frames_of, note
from pagedvid.codecs.registry import read_codec
from pagedvid.models.registry import load_model
from processes import shared
from quality_scores import Task, score_attributes
from report import format_table, mean_and_error

CODECS = ("int4", "int4/int2", "int2", "int2-pair-s8", "int2-post", "token4-g64", "token2-g64", "hadamard2-g64")
KLT_CODECS = ("klt3", "klt1.5/klt3", "klt2.25", "klt2", "klt1/klt2", "klt1.5", "klt1")
SWEPT = ("token2-g64", "int2")
"""The paper's quantizer and the package's, with multiples of b."""
FACTORS = (0.5, 2.0, 4.0)
"""Beside 0 (off) and 1 (formula)."""
MODES = ("off", "formula", "variance", "measured")
Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run of all videos."""

    case: Case
    is_forced: bool = False
    """Whether the run with the reference's history is wanted too."""


def jobs(lab: Lab, codecs: Sequence[str] | None = None) -> list[Job]:
    """Every row of the tables; `codecs`: storages to keep, None: all."""
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
    cases += [Case(name, "formula", factor) for name in SWEPT for factor in FACTORS]
    wanted = [case for case in cases if codecs is None or case.storage in codecs]
    return [Job(case, is_forced=case.storage in SWEPT) for case in wanted]


@dataclass(frozen=True)
class Bench:
    """All videos of a study, and what they are compared with."""

    lab: Lab
    tasks: Sequence[Task]
    reference: np.ndarray
    """Of the bf16 run, [videos, frames, H, W, 3]."""
    history: Sequence[Tensor]
    """Clean latents of that run by chunk."""
    forced_reference: np.ndarray

    @staticmethod
    def of(lab: Lab, tasks: Sequence[Task]) -> Bench:
        """Makes the reference."""
        note(f"videos: {REFERENCE}")
        made = lab.forced(lab.cache(REFERENCE)).generate()
        return Bench(lab, tasks, lab.engine_frames(lab.cache(REFERENCE)), made.latents, frames_of(made))

    def measure(self, job: Job) -> Result:
        """Bits, and PSNR, SSIM and score of every prompt."""
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
            made = self.lab.forced(self.lab.cache(job.case)).generate(self.history)
            forced = zip(self.lab.compared(frames_of(made)), self.lab.compared(self.forced_reference), strict=True)
            result["forced_psnr"] = [round(psnr(a, b), 4) for a, b in forced]
        return result


_bench: Bench | None = None
"""What a process was started with."""


def _start(lab: tuple[Any, ...], compared: tuple[Any, ...]) -> None:
    """Everything but the model travels between processes."""
    global _bench
    _bench = Bench(Lab(load_model("demo", lab[-1], "cpu", torch.float32), *lab), *compared)


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
    """Mean, and standard error with so many digits."""
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
    """What corrections bring in dB."""
    rows = []
    for storage, by_mode in _by_storage(results):
        off = by_mode["off"]
        cells = [text(gain(by_mode[mode], off)) if mode in by_mode else "-" for mode in (*MODES[1:], OWN)]
        rows.append((storage, f"{np.mean(off['psnr']):.2f}", *cells))
    return format_table(("gain in dB", "off", "formula", "variance", "measured", "preset's"), rows)


def sweep_table(results: Mapping[Case, Result]) -> str:
    """b times 0, 0.5, 1, 2, 4, and the other corrections; empty when nothing was swept."""
    rows: list[tuple[str, ...]] = []
    for storage in SWEPT:
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
    """Results without factor by correction, by storage of rising bits."""
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
