"""How close two videos are: PSNR and SSIM of uint8 frames [F, H, W, C]."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

PEAK = 255.0
ROUNDING_ERROR = 1 / 12
"""Mean square of rounding to whole levels: no difference below it can be told, which caps the PSNR at 58.9 dB."""
SSIM_WINDOW = 7


def psnr(a_FHWC: np.ndarray, b_FHWC: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of all frames together, at most 58.9."""
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
