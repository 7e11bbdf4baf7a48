"""The side-by-side sheet: frames of the reference, of the other video, and their difference, amplified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pagedvid.output.mp4 import Frames, read_frames
from pagedvid.output.sheet import MAX_COLUMNS, MAX_ROWS, Block, draw_sheet, spaced_indices
from pagedvid.quality.comparison import Compared

AMPLIFICATION = 8
MAX_VIDEOS = MAX_ROWS // 3


def write_comparison_sheet(path: Path, compared: Sequence[Compared]) -> int:
    """Draws three rows for each of the `MAX_VIDEOS` videos with the lowest PSNR, the lowest first.

    Returns how many it shows. Raises one of `write_errors()`.
    """
    worst = sorted(compared, key=lambda it: it.values["psnr_db"])[:MAX_VIDEOS]
    return draw_sheet(path, map(_block, worst))


def _block(compared: Compared) -> Block:
    pair = compared.pair
    indices = spaced_indices(pair.shape.num_frames, min(MAX_COLUMNS, pair.shape.num_frames))
    a, b = read_frames(pair.a, indices), read_frames(pair.b, indices)
    differences = [amplified_difference(*frames) for frames in zip(a, b, strict=True)]
    measured = f"PSNR {compared.values['psnr_db']:.2f} dB, SSIM {compared.values['ssim']:.4f}"
    return Block(pair.name, f"{measured}; reference, other, difference x {AMPLIFICATION}", [a, b, differences])


def amplified_difference(a_HWC: Frames, b_HWC: Frames) -> Frames:
    """The absolute difference of two frames in levels, times `AMPLIFICATION`; black is equal."""
    difference = np.abs(a_HWC.astype(np.int16) - b_HWC.astype(np.int16))
    return np.minimum(AMPLIFICATION * difference, 255).astype(np.uint8)
