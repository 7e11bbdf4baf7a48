"""The contact sheet."""

from __future__ import annotations

import numpy as np

from lib.demo_sheet import CELL, draw_sheet


def test_sheet_shows_the_right_frames_under_each_prompt() -> None:
    def video(red: int, green: int) -> np.ndarray:
        frames = np.zeros((10, 32, 32, 3), dtype=np.uint8)
        frames[..., 0], frames[..., 1], frames[..., 2] = red, green, 10 * np.arange(10)[:, None, None]
        return frames

    videos = {"bf16": [video(200, 1), video(200, 2)], "int2": [video(100, 1), video(100, 2)]}
    sheet = np.asarray(draw_sheet(["first", "second"], videos, [range(0, 6, 2), range(7, 9)]))
    shown = []
    for red, green in ((200, 1), (100, 1), (200, 2), (100, 2)):
        y, x = np.nonzero((sheet[..., 0] == red) & (sheet[..., 1] == green))
        assert y.max() - y.min() == CELL - 1
        row = sheet[(y.min() + y.max()) // 2]
        shown.append((y.min(), list(dict.fromkeys(row[x.min() : x.max() + 1 : CELL // 2, 2].tolist()))))
    assert [top for top, _ in shown] == sorted(top for top, _ in shown)
    for _, blues in shown:
        assert [blue for blue in blues if blue % 10 == 0 and blue < 100] == [0, 20, 40, 70, 80]
