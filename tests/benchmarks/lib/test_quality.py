"""PSNR and SSIM against values found by hand; scores of drawn videos, right and wrong ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lib.quality import (
    ATTRIBUTE_NAMES,
    attributes_table,
    draw_tasks,
    identity_table,
    psnr,
    score_attributes,
    score_identity,
    ssim,
)
from pagedvid.models.demo.captions import read_prompt
from pagedvid.models.demo.vocabulary import ATTRIBUTES
from pagedvid.models.demo.world import is_held_out
from tests.benchmarks.clips import draw_clip

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def flat(level: int) -> np.ndarray:
    return np.full((2, 9, 9, 3), level, dtype=np.uint8)


def test_psnr_of_a_constant_difference() -> None:
    assert psnr(flat(10), flat(20)) == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr(flat(10), flat(10)) == pytest.approx(58.92, abs=0.01)
    half = flat(10)
    half[0] = 20
    assert psnr(half, flat(10)) == pytest.approx(10 * np.log10(255**2 / 50))


def test_ssim_of_flat_frames_is_their_luminance_term() -> None:
    assert ssim(flat(100), flat(100)) == 1
    assert ssim(flat(100), flat(50)) == pytest.approx((2 * 100 * 50 + C1) / (100**2 + 50**2 + C1))


def test_ssim_of_opposite_stripes() -> None:
    # One 7 x 7 window: 4 columns of 60 and 3 of 40, and the other way round.
    a = np.where(np.arange(7) % 2 == 0, 60, 40).astype(np.uint8)
    a = np.broadcast_to(a[None, None, :, None], (1, 7, 7, 1))
    mean_a, mean_b, variance = (4 * 60 + 3 * 40) / 7, (4 * 40 + 3 * 60) / 7, 400 * 12 / 49
    expected = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1) * (-2 * variance + C2) / (2 * variance + C2)
    assert ssim(a, 100 - a) == pytest.approx(expected)


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
