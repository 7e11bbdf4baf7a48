"""The part "drift": do long videos degrade when their history is quantized?

Windows of 24 frames are read: how much of the prompt they show (`right`, percent), and statistics of the picture.

mean        luma                                   saturation  range of the three colors
contrast    standard deviation of luma in a frame  detail      deviation of luma from its 3 x 3 surroundings

Shifts are in standard deviations over the bf16 videos, prompt by prompt, with mean and standard error: for bf16, the
last window less its own first one; for every other cache, its last window less the last window of bf16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.caches import DEFAULT, OWN, REFERENCE, Case
from lib.lab import Lab
from lib.quality import READ_FRAMES, Task, score_attributes
from lib.report import format_table, note
from pagedvid.quality.metrics import mean_and_error, window_mean

CASES = (REFERENCE, Case("int2"), Case("int2", "measured"), Case(DEFAULT, OWN))
CALIBRATED_CASES = (Case("small", OWN),)
"""Further cases, if the model has klt tables."""
STATISTICS = ("mean", "contrast", "saturation", "detail")
LUMA = (0.299, 0.587, 0.114)
DETAIL_WINDOW = 3
Windows = dict[str, list[list[float]]]
"""Values [video][window], by statistic or "right"."""


def image_statistics(frames_FHWC: np.ndarray) -> dict[str, float]:
    """Statistics of uint8 frames, in units of the full range."""
    colors = frames_FHWC.astype(np.float64) / 255
    luma_FHW = colors @ np.array(LUMA)
    margin = DETAIL_WINDOW // 2
    inner = luma_FHW[:, margin:-margin, margin:-margin]
    surroundings = window_mean(luma_FHW[..., None], DETAIL_WINDOW)[..., 0]
    return {
        "mean": float(luma_FHW.mean()),
        "contrast": float(luma_FHW.std(axis=(1, 2)).mean()),
        "saturation": float(np.ptp(colors, axis=-1).mean()),
        "detail": float(np.sqrt(np.square(inner - surroundings).mean())),
    }


def windows_of(num_frames: int) -> list[int]:
    """First frames of the windows; the last window ends with the video."""
    return [*range(0, num_frames - 2 * READ_FRAMES + 1, READ_FRAMES), num_frames - READ_FRAMES]


def read_windows(tasks: Sequence[Task], videos: np.ndarray) -> Windows:
    """Reads all windows of videos, uint8 [videos, frames, H, W, 3]."""
    result: Windows = {name: [[] for _ in videos] for name in ("right", *STATISTICS)}
    for first in windows_of(videos.shape[1]):
        for number, right in enumerate(score_attributes(tasks, videos, first)["all"]):
            result["right"][number].append(right)
            for name, value in image_statistics(videos[number, first : first + READ_FRAMES]).items():
                result[name][number].append(value)
    return result


def measure_drift(lab: Lab, tasks: Sequence[Task], cases: Sequence[Case]) -> dict[Case, Windows]:
    """Windows of every case, the reference among them."""
    results = {}
    for case in cases:
        note(f"drift: {case}")
        results[case] = read_windows(tasks, lab.engine_frames(lab.cache(case)))
    return results


def shifts(results: Mapping[Case, Windows], case: Case, name: str) -> list[float]:
    """Shift of one statistic by video, in standard deviations over the reference's videos (module docstring)."""
    reference, own = np.array(results[REFERENCE][name]), np.array(results[case][name])
    deviation = reference.mean(axis=1).std(ddof=1)
    moved = own[:, -1] - (own[:, 0] if case == REFERENCE else reference[:, -1])
    return (moved / deviation).tolist()


def drift_table(results: Mapping[Case, Windows]) -> str:
    """One row per cache."""
    rows = []
    for case, windows in results.items():
        right = np.array(windows["right"])
        mean, error = mean_and_error(right[:, -1].tolist())
        moved = [mean_and_error(shifts(results, case, name)) for name in STATISTICS]
        cells = (f"{value:+.2f}±{uncertainty:.2f}" for value, uncertainty in moved)
        rows.append((str(case), f"{100 * right[:, 0].mean():.1f}", f"{100 * mean:.1f}±{100 * error:.1f}", *cells))
    return format_table(("cache", "right", "at the end", *STATISTICS), rows)


def to_rows(results: Mapping[Case, Windows]) -> list[dict[str, Any]]:
    """For the JSON file."""
    return [{"storage": case.storage, "correction": case.correction, **windows} for case, windows in results.items()]


def from_rows(rows: Sequence[Mapping[str, Any]]) -> dict[Case, Windows]:
    """The inverse of `to_rows`."""
    return {
        Case(row["storage"], row["correction"]): {name: row[name] for name in ("right", *STATISTICS)} for row in rows
    }
