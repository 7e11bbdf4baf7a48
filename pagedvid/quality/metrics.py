"""How far two videos are apart: PSNR, SSIM and flicker, frame by frame in bounded memory; means over videos.

PSNR, SSIM  Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity",
            IEEE Transactions on Image Processing 13(4), 2004. SSIM with its constants, in uniform windows
flicker     the temporal difference of the two videos, as dtSSD in Erofeev et al., "Perceptually motivated benchmark for
            video matting", BMVC 2015, with absolute differences in place of squares
change      "temporal flickering" of VBench (Huang et al., CVPR 2024, arXiv 2311.17982) before it is turned around into
            a score: the mean absolute difference of consecutive frames

Frames are uint8. Axes: F frames, H rows, W columns, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev

import numpy as np
from numpy.typing import NDArray

PEAK = 255.0
ROUNDING_ERROR = 1 / 12
"""Mean square of rounding to whole levels. Smaller differences are invisible, which caps the PSNR at 58.9 dB."""
SSIM_WINDOW = 7

Frames = NDArray[np.uint8]


def psnr(a_FHWC: Frames, b_FHWC: Frames) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of all frames, at most 58.9."""
    return psnr_of(_square_error(a_FHWC, b_FHWC))


def psnr_of(mean_square: float) -> float:
    """The PSNR in dB of a mean square error in levels."""
    return float(10 * np.log10(PEAK**2 / max(mean_square, ROUNDING_ERROR)))


def _square_error(a: Frames, b: Frames) -> float:
    return float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())


def ssim(a_FHWC: Frames, b_FHWC: Frames) -> float:
    """Structural similarity: mean over all uniform 7 x 7 windows inside the frames, all channels and all frames."""
    a, b = a_FHWC.astype(np.float64), b_FHWC.astype(np.float64)
    mean_a, mean_b = window_mean(a), window_mean(b)
    variance_a = window_mean(a * a) - mean_a**2
    variance_b = window_mean(b * b) - mean_b**2
    covariance = window_mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variance_a + variance_b + c2)).mean())


def window_mean(x_FHWC: NDArray[np.floating], size: int = SSIM_WINDOW) -> NDArray[np.float64]:
    """Means over all size x size windows inside the frames, [F, H - size + 1, W - size + 1, C]."""
    rows = _running_sum(x_FHWC.astype(np.float64), size, axis=1)
    return _running_sum(rows, size, axis=2) / size**2


def _running_sum(x: NDArray[np.float64], size: int, axis: int) -> NDArray[np.float64]:
    """Sums over all runs of `size` neighbours along an axis, which becomes size - 1 shorter."""
    x = np.moveaxis(x, axis, 0)
    sums = np.concatenate([np.zeros_like(x[:1]), np.cumsum(x, axis=0)])
    return np.moveaxis(sums[size:] - sums[:-size], 0, axis)


class RunningDistance:
    """The distance of two videos of equal size, from pairs of frames that are added in order."""

    def __init__(self) -> None:
        self.num_frames = 0
        self._square_error = self._ssim = 0.0
        self._changes = np.zeros(3)
        """Sums over pairs of consecutive frames: flicker, change of A, change of B."""
        self._before: tuple[NDArray[np.int16], NDArray[np.int16]] | None = None

    def add(self, a_HWC: Frames, b_HWC: Frames) -> None:
        """Adds the next frame of both videos, at least `SSIM_WINDOW` pixels wide and high."""
        self.num_frames += 1
        self._square_error += _square_error(a_HWC, b_HWC)
        self._ssim += ssim(a_HWC[None], b_HWC[None])
        a, b = a_HWC.astype(np.int16), b_HWC.astype(np.int16)
        if self._before is not None:
            change_a, change_b = a - self._before[0], b - self._before[1]
            self._changes += [np.abs(x).mean() for x in (change_a - change_b, change_a, change_b)]
        self._before = a, b

    def values(self) -> dict[str, float]:
        """`psnr_db` over all pixels of all frames; `ssim`, the mean over frames; and in levels of 255, where there are
        two frames at least: `flicker`, the mean absolute difference between the two videos' differences of consecutive
        frames, and `change_a` and `change_b`, the mean absolute difference of consecutive frames of each."""
        found = {"psnr_db": psnr_of(self._square_error / self.num_frames), "ssim": self._ssim / self.num_frames}
        if self.num_frames > 1:
            flicker, change_a, change_b = (self._changes / (self.num_frames - 1)).tolist()
            found |= {"flicker": flicker, "change_a": change_a, "change_b": change_b}
        return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the mean, which is NaN for a single value."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return sum(values) / len(values), error
