"""What `demo_quality` asks of the demo model, and how right its videos are: scores by attribute, and their tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forced_run import Request
from pagedvid.models.demo.captions import caption
from pagedvid.models.demo.world import Scene, random_scene
from report import format_table, mean_and_error
from scene_reader import compare, compare_identity, read_scene

READ_FRAMES = 24
"""Frames of a clip that is read."""
ATTRIBUTE_NAMES = ("background", "color", "kind", "size", "motion")
Scores = dict[str, list[float]]
"""By attribute one value in 0..1 per prompt."""


@dataclass(frozen=True)
class Task:
    """One video: what it should show, and what is asked of the model."""

    scene: Scene
    request: Request

    def opened(self) -> Task:
        """The same without color, kind and size in the prompt."""
        prompt = self.request.prompt
        for thing in self.scene.things:
            prompt = prompt.replace(f"{thing.size} {thing.color} {thing.kind}", "shape")
        return Task(self.scene, Request(prompt, self.request.seed))


def draw_tasks(num_prompts: int, seed: int) -> list[Task]:
    """Held-out scenes of one and two things in turn; a smaller count gives the first ones of a larger."""
    scenes = [
        random_scene(np.random.default_rng([seed, i]), num_things=1 + i % 2, held_out=True) for i in range(num_prompts)
    ]
    return [Task(scene, Request(caption(scene), seed + i)) for i, scene in enumerate(scenes)]


def score_attributes(tasks: Sequence[Task], videos: Iterable[np.ndarray], first_frame: int) -> Scores:
    """Read `READ_FRAMES` frames of every video, uint8 [F, 32, 32, 3], from `first_frame` on: what is as the task says.

    "all" counts every attribute that the prompt names once, "number of things" compares how many are in view.
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
    """What the frames after the first ones share with them, and whether they go on with their motion ("path")."""
    scores: Scores = {name: [] for name in (*ATTRIBUTE_NAMES, "path")}
    for task, video in zip(tasks, videos, strict=True):
        num_things = len(task.scene.things)
        before = read_scene(video[:num_before_frames], num_things)
        right = compare_identity(before, read_scene(video[num_before_frames:], num_things, num_before_frames))
        for name, values in scores.items():
            values.append(float(np.mean(right[name])))
    return scores


def attributes_table(tasks: Sequence[Task], by_cache: Mapping[str, Scores]) -> str:
    """One column per cache; differences are to the first."""
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
