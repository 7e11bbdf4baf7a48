"""PSNR, SSIM and flicker against values found by hand and against their formulas, window by window."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from pagedvid.quality.metrics import RunningDistance, mean_and_error, psnr, ssim, window_mean

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def flat(level: int) -> np.ndarray:
    return np.full((2, 9, 9, 3), level, dtype=np.uint8)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def near(a: np.ndarray, seed: int) -> np.ndarray:
    return np.clip(a.astype(int) + np.random.default_rng(seed).integers(-9, 10, a.shape), 0, 255).astype(np.uint8)


def distance(a_FHWC: np.ndarray, b_FHWC: np.ndarray) -> dict[str, float]:
    running = RunningDistance()
    for a, b in zip(a_FHWC, b_FHWC, strict=True):
        running.add(a, b)
    return running.values()


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


def test_ssim_is_the_mean_of_its_formula_over_all_windows() -> None:
    a = noise(0, 2, 11, 9, 3)
    b = near(a, 1)
    found = []
    for frame, row, column, channel in product(range(2), range(5), range(3), range(3)):
        x = a[frame, row : row + 7, column : column + 7, channel].astype(float).ravel()
        y = b[frame, row : row + 7, column : column + 7, channel].astype(float).ravel()
        ((variance_x, covariance), (_, variance_y)) = np.cov(x, y, bias=True)
        found.append(
            (2 * x.mean() * y.mean() + C1)
            * (2 * covariance + C2)
            / ((x.mean() ** 2 + y.mean() ** 2 + C1) * (variance_x + variance_y + C2))
        )
    assert ssim(a, b) == pytest.approx(np.mean(found), rel=1e-12)
    assert ssim(a, b) < 0.999


def test_means_of_windows_of_any_kind_of_number() -> None:
    x = noise(2, 1, 6, 5, 2).astype(np.float32)
    expected = [[x[0, i : i + 3, j : j + 3].mean(axis=(0, 1)) for j in range(3)] for i in range(4)]
    assert window_mean(x, 3)[0] == pytest.approx(np.array(expected), rel=1e-6)


def test_frame_by_frame_is_the_same_as_all_at_once() -> None:
    a = noise(3, 5, 12, 10, 3)
    b = near(a, 4)
    found = distance(a, b)
    assert list(found) == ["psnr_db", "ssim", "flicker", "change_a", "change_b"]
    assert found["psnr_db"] == pytest.approx(psnr(a, b)) and found["ssim"] == pytest.approx(ssim(a, b))
    change_a, change_b = np.diff(a.astype(float), axis=0), np.diff(b.astype(float), axis=0)
    assert found["flicker"] == pytest.approx(np.abs(change_a - change_b).mean())
    assert (found["change_a"], found["change_b"]) == pytest.approx((np.abs(change_a).mean(), np.abs(change_b).mean()))


def test_flicker_sees_what_comes_and_goes_not_what_stays() -> None:
    a = np.stack([flat(100)[0]] * 4)
    brighter, blinking = a + np.uint8(10), a.copy()
    blinking[1::2] += 10
    assert distance(a, brighter)["flicker"] == 0 and distance(a, blinking)["flicker"] == 10
    assert distance(a, blinking)["change_a"] == 0 and distance(a, blinking)["change_b"] == 10


def test_one_frame_has_no_flicker() -> None:
    assert list(distance(flat(1)[:1], flat(1)[:1])) == ["psnr_db", "ssim"]


def test_mean_and_its_standard_error() -> None:
    mean, error = mean_and_error([1.0, 3.0, 5.0, 7.0])
    assert mean == 4
    assert error == pytest.approx(math.sqrt(20 / 3) / 2)
    assert math.isnan(mean_and_error([1.0])[1])
