"""Drift: statistics react to what they are named after, windows cover a video, shifts have the right unit."""

from __future__ import annotations

import numpy as np
import pytest

from fidelity.drift import STATISTICS, image_statistics, read_windows, shifts, windows_of
from lib.caches import REFERENCE, Case
from lib.quality import draw_tasks
from tests.benchmarks.clips import draw_clip


def plain(value: float) -> np.ndarray:
    return np.full((3, 32, 32, 3), value, dtype=np.uint8)


def test_each_statistic_sees_its_own_change() -> None:
    rng = np.random.default_rng(0)
    still = image_statistics(plain(100))
    assert still == pytest.approx({"mean": 100 / 255, "contrast": 0, "saturation": 0, "detail": 0}, abs=1e-9)
    noisy = image_statistics(plain(100) + rng.integers(0, 20, (3, 32, 32, 1)).astype(np.uint8))
    assert noisy["detail"] > 0.01 and noisy["contrast"] > 0.01 and noisy["saturation"] == 0
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None], (3, 32, 32))[..., None].repeat(3, axis=-1)
    assert image_statistics(ramp)["contrast"] > 0.02 and image_statistics(ramp)["detail"] < 1e-9
    red = plain(0)
    red[..., 0] = 255
    assert image_statistics(red)["saturation"] == 1 and image_statistics(red)["mean"] == pytest.approx(0.299)


@pytest.mark.parametrize(("num_frames", "first"), [(48, [0, 24]), (64, [0, 40]), (100, [0, 24, 48, 76])])
def test_windows_cover_start_and_end(num_frames: int, first: list[int]) -> None:
    assert windows_of(num_frames) == first


def test_shifts_are_in_deviations_of_the_reference() -> None:
    reference = {"mean": [[1.0, 1.0], [3.0, 3.0]]}
    moved = {"mean": [[1.0, 2.0], [3.0, 5.0]]}
    results = {REFERENCE: reference, Case("int2"): moved}
    assert shifts(results, REFERENCE, "mean") == [0.0, 0.0]
    assert shifts(results, Case("int2"), "mean") == pytest.approx([1 / 2**0.5, 2 / 2**0.5])
    assert shifts({REFERENCE: moved}, REFERENCE, "mean") == pytest.approx([1 / 2.0**0.5 / 1.25 * 1, 2 / 1.25 / 2**0.5])


def test_reading_windows_of_clips() -> None:
    tasks = draw_tasks(2, 0)
    videos = np.stack([draw_clip(task.scene, num_frames=48) for task in tasks])
    windows = read_windows(tasks, videos)
    assert set(windows) == {"right", *STATISTICS}
    assert all(len(by_window) == 2 for values in windows.values() for by_window in values)
    assert np.mean(windows["right"]) > 0.9
