"""How good the demo model's videos are: what they show of their prompts.

Videos are uint8 frames [F, H, W, C].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.lab import Request
from lib.report import format_table
from lib.scene_reader import compare, compare_identity, read_scene
from pagedvid.models.demo.captions import caption
from pagedvid.models.demo.world import Scene, random_scene
from pagedvid.quality.metrics import mean_and_error

READ_FRAMES = 24
"""Frames of a clip whose content is read."""
ATTRIBUTE_NAMES = ("background", "color", "kind", "size", "motion")
Scores = dict[str, list[float]]
"""One value in 0..1 per prompt, by attribute."""


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
