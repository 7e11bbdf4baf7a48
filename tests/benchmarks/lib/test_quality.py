"""Scores of drawn videos, right and wrong ones."""

from __future__ import annotations

import dataclasses

import numpy as np

from lib.quality import (
    ATTRIBUTE_NAMES,
    attributes_table,
    draw_tasks,
    identity_table,
    score_attributes,
    score_identity,
)
from pagedvid.models.demo.captions import read_prompt
from pagedvid.models.demo.vocabulary import ATTRIBUTES
from pagedvid.models.demo.world import is_held_out
from tests.benchmarks.clips import draw_clip


def test_tasks_are_held_out_and_fixed_by_the_seed() -> None:
    tasks = draw_tasks(8, 0)
    assert tasks[:4] == draw_tasks(4, 0) and tasks[:4] != draw_tasks(4, 1)
    assert [len(task.scene.things) for task in tasks] == [1, 2] * 4
    assert all(is_held_out(thing, task.scene.background) for task in tasks for thing in task.scene.things)
    assert all(read_prompt(task.request.prompt).all() for task in tasks)  # no attribute is left open


def test_open_prompts_leave_color_kind_and_size_to_the_model() -> None:
    for task in draw_tasks(8, 0):
        full, opened = read_prompt(task.request.prompt), read_prompt(task.opened().request.prompt)
        for thing in range(len(task.scene.things)):
            for slot, name in enumerate(ATTRIBUTES):
                place = thing * len(ATTRIBUTES) + slot
                assert opened[place] == (full[place] if name == "motion" else 0)
        assert opened[-1] == full[-1] and task.opened().request.seed == task.request.seed


def test_drawn_videos_are_all_right_and_those_of_others_are_not() -> None:
    tasks = draw_tasks(8, 0)
    videos = [draw_clip(task.scene, num_frames=224) for task in tasks]
    for first_frame in (0, 200):
        scores = score_attributes(tasks, videos, first_frame)
        assert list(scores) == [*ATTRIBUTE_NAMES, "all", "number of things"]
        assert all(values == [1.0] * 8 for values in scores.values())
    swapped = score_attributes(tasks, videos[2:] + videos[:2], 0)
    assert np.mean(swapped["all"]) < 0.5 and swapped["number of things"] == [1.0] * 8
    table = attributes_table(tasks, {"bf16": scores, "int4": scores, "int2": scores, "int2-off": swapped})
    assert "100.0 ± 0.0" in table and "+0.0 ± 0.0" in table
    assert f"{100 * (np.mean(swapped['all']) - 1):+.1f}" in table


def test_everything_that_a_prompt_says_counts_once() -> None:
    (task, two) = draw_tasks(2, 0)
    first, second = two.scene.things
    other = next(kind for kind in ("circle", "square") if kind != second.kind)
    scene = dataclasses.replace(two.scene, things=(first, dataclasses.replace(second, kind=other)))
    scores = score_attributes([task, two], [draw_clip(task.scene), draw_clip(scene)], 0)
    assert scores["kind"] == [1.0, 0.5] and scores["all"] == [1.0, 8 / 9]


def test_identity_of_drawn_videos() -> None:
    tasks = draw_tasks(8, 0)
    videos = [draw_clip(task.scene, num_frames=32) for task in tasks]
    whole = score_identity(tasks, videos, 8)
    assert all(values == [1.0] * 8 for values in whole.values())
    mixed = [np.concatenate([video[:8], videos[i - 2][8:]]) for i, video in enumerate(videos)]
    emptied = score_identity(tasks, mixed, 8)
    assert np.mean(emptied["color"]) < 0.6 and np.mean(emptied["path"]) < 0.6
    table = identity_table({"open, whole": whole, "open, emptied": emptied})
    assert table.splitlines()[0].split() == ["percent", "kept", "open,", "whole", "open,", "emptied"]
