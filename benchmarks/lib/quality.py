"""How good the demo model's videos are: PSNR and SSIM against other videos, and what they show of their prompts.

Videos are uint8 frames [F, H, W, C].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lib.lab import Request
from lib.report import format_table, mean_and_error
from lib.scene_reader import compare, compare_identity, read_scene
from pagedvid.models.demo.captions import caption
from pagedvid.models.demo.world import Scene, random_scene

PEAK = 255.0
ROUNDING_ERROR = 1 / 12
"""Mean square of rounding to whole levels. Smaller differences are invisible, which caps the PSNR at 58.9 dB."""
SSIM_WINDOW = 7
READ_FRAMES = 24
"""Frames of a clip whose content is read."""
ATTRIBUTE_NAMES = ("background", "color", "kind", "size", "motion")
Scores = dict[str, list[float]]
"""One value in 0..1 per prompt, by attribute."""


def psnr(a_FHWC: np.ndarray, b_FHWC: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of all frames, at most 58.9."""
    error = np.square(a_FHWC.astype(np.float64) - b_FHWC.astype(np.float64)).mean()
    return float(10 * np.log10(PEAK**2 / max(error, ROUNDING_ERROR)))


def ssim(a_FHWC: np.ndarray, b_FHWC: np.ndarray) -> float:
    """Structural similarity: mean over all uniform 7 x 7 windows inside the frames, all channels and all frames."""
    a, b = a_FHWC.astype(np.float64), b_FHWC.astype(np.float64)
    mean_a, mean_b = window_mean(a), window_mean(b)
    variance_a = window_mean(a * a) - mean_a**2
    variance_b = window_mean(b * b) - mean_b**2
    covariance = window_mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variance_a + variance_b + c2)).mean())


def window_mean(x_FHWC: np.ndarray, size: int = SSIM_WINDOW) -> np.ndarray:
    """Means over all size x size windows inside the frames, [F, H - size + 1, W - size + 1, C]."""
    return sliding_window_view(x_FHWC, (size, size), axis=(1, 2)).mean(axis=(-2, -1))


@dataclass(frozen=True)
class Task:
    """One video: the scene that it should show, and the request that says so."""

    scene: Scene
    request: Request

    def opened(self) -> Task:
        """The same task with a prompt that leaves color, kind and size open."""
        prompt = self.request.prompt
        for thing in self.scene.things:
            prompt = prompt.replace(f"{thing.size} {thing.color} {thing.kind}", "shape")
        return Task(self.scene, Request(prompt, self.request.seed))


def draw_tasks(num_prompts: int, seed: int) -> list[Task]:
    """Held-out scenes of one and two things alternately; a larger number continues the list of a smaller one."""
    scenes = [
        random_scene(np.random.default_rng([seed, i]), num_things=1 + i % 2, held_out=True) for i in range(num_prompts)
    ]
    return [Task(scene, Request(caption(scene), seed + i)) for i, scene in enumerate(scenes)]


def score_attributes(tasks: Sequence[Task], videos: Iterable[np.ndarray], first_frame: int) -> Scores:
    """Which attributes are as the task says, in `READ_FRAMES` frames of every video from `first_frame` on.

    "all" is the share of all attributes that the prompt names; "number of things" compares how many are in view.
    """
    scores: Scores = {name: [] for name in (*ATTRIBUTE_NAMES, "all", "number of things")}
    for task, video in zip(tasks, videos, strict=True):
        clip = video[first_frame : first_frame + READ_FRAMES]
        reading = read_scene(clip, len(task.scene.things), first_frame)
        right = compare(task.scene, reading)
        for name in ATTRIBUTE_NAMES:
            scores[name].append(float(np.mean(right[name])))
        scores["all"].append(float(np.mean([value for values in right.values() for value in values])))
        scores["number of things"].append(float(reading.num_things == len(task.scene.things)))
    return scores


def score_identity(tasks: Sequence[Task], videos: Iterable[np.ndarray], num_before_frames: int) -> Scores:
    """Which attributes later frames share with the first ones, and whether they continue their motion ("path")."""
    scores: Scores = {name: [] for name in (*ATTRIBUTE_NAMES, "path")}
    for task, video in zip(tasks, videos, strict=True):
        num_things = len(task.scene.things)
        before = read_scene(video[:num_before_frames], num_things)
        right = compare_identity(before, read_scene(video[num_before_frames:], num_things, num_before_frames))
        for name, values in scores.items():
            values.append(float(np.mean(right[name])))
    return scores


def attributes_table(tasks: Sequence[Task], by_cache: Mapping[str, Scores]) -> str:
    """One column per cache; differences are to the first cache."""
    reference = next(iter(by_cache))
    rows = [(name, *(percent(scores[name]) for scores in by_cache.values())) for name in (*ATTRIBUTE_NAMES, "all")]
    for number, text in ((1, "all, one thing"), (2, "all, two things")):
        chosen = [i for i, task in enumerate(tasks) if len(task.scene.things) == number]
        rows.append((text, *(percent([scores["all"][i] for i in chosen]) for scores in by_cache.values())))
    differences = [np.subtract(scores["all"], by_cache[reference]["all"]) for scores in by_cache.values()]
    rows.append((f"all, less {reference}", "", *(percent(values.tolist(), sign="+") for values in differences[1:])))
    rows.append(("number of things", *(percent(scores["number of things"]) for scores in by_cache.values())))
    return format_table(("percent right", *by_cache), rows)


def identity_table(by_case: Mapping[str, Scores]) -> str:
    """One column per kind of prompts and cache."""
    rows = [(name, *(percent(scores[name]) for scores in by_case.values())) for name in (*ATTRIBUTE_NAMES, "path")]
    return format_table(("percent kept", *by_case), rows)


def percent(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard error of values in 0..1."""
    mean, error = mean_and_error(values)
    return f"{100 * mean:{sign}.1f} ± {100 * error:.1f}"
