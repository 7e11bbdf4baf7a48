"""PSNR and SSIM against values found by hand."""

from __future__ import annotations

import numpy as np
import pytest

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def flat(level: int) -> np.ndarray:
    return np.full((2, 9, 9, 3), level, dtype=np.uint8)


def test_psnr_of_a_constant_difference() -> None:
    from frame_quality import psnr

    assert psnr(flat(10), flat(20)) == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr(flat(10), flat(10)) == pytest.approx(58.92, abs=0.01)
    half = flat(10)
    half[0] = 20
    assert psnr(half, flat(10)) == pytest.approx(10 * np.log10(255**2 / 50))


def test_ssim_of_flat_frames_is_their_luminance_term() -> None:
    from frame_quality import ssim

    assert ssim(flat(100), flat(100)) == 1
    assert ssim(flat(100), flat(50)) == pytest.approx((2 * 100 * 50 + C1) / (100**2 + 50**2 + C1))


def test_ssim_of_opposite_stripes() -> None:
    from frame_quality import ssim

    # One 7 x 7 window: 4 columns of 60 and 3 of 40, and the other way round.
    a = np.where(np.arange(7) % 2 == 0, 60, 40).astype(np.uint8)
    a = np.broadcast_to(a[None, None, :, None], (1, 7, 7, 1))
    mean_a, mean_b, variance = (4 * 60 + 3 * 40) / 7, (4 * 40 + 3 * 60) / 7, 400 * 12 / 49
    expected = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1) * (-2 * variance + C2) / (2 * variance + C2)
    assert ssim(a, 100 - a) == pytest.approx(expected)
