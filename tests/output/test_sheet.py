"""The contact sheet."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pagedvid.output import sheet
from pagedvid.output.sheet import SHEET_WIDTH, SheetRow, spaced_indices, write_sheet
from tests.output.test_video import write


def video(tmp_path, name, color, num_frames=12, size=(16, 16)):
    path = tmp_path / f"{name}.mp4"
    write(path, np.broadcast_to(np.array(color, dtype=np.uint8), (num_frames, *size, 3)))
    return path


def count_pixels(picture, color):
    return int((np.abs(np.array(picture).astype(int) - color).max(axis=-1) <= 8).sum())


def test_a_row_per_video_in_its_colours(tmp_path):
    rows = [
        SheetRow(video(tmp_path, "a", (230, 30, 35)), "a red circle", "a  seed 0"),
        SheetRow(video(tmp_path, "b", (50, 100, 255), num_frames=3), "a blue square", "b  seed 1"),
    ]
    assert write_sheet(tmp_path / "sheet.png", rows) == 2
    picture = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert picture.width == SHEET_WIDTH
    red, blue = count_pixels(picture, (230, 30, 35)), count_pixels(picture, (50, 100, 255))
    assert red > 8 * 130**2
    assert blue == pytest.approx(red * 3 / 8, rel=0.02)  # eight thumbnails and three


def test_captions_of_any_length_and_script(tmp_path):
    path = video(tmp_path, "a", (0, 0, 0))
    rows = [SheetRow(path, caption, "id  seed 0") for caption in ("x " * 500, "two\nlines", "ein Kreis, 赤い円", "")]
    assert write_sheet(tmp_path / "sheet.png", rows) == 4


def test_wide_videos_keep_their_shape(tmp_path):
    row = SheetRow(video(tmp_path, "a", (230, 30, 35), size=(16, 48)), "wide", "")
    write_sheet(tmp_path / "sheet.png", [row])
    assert Image.open(tmp_path / "sheet.png").height < 140


def test_a_huge_batch_shows_its_first_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "MAX_ROWS", 2)
    row = SheetRow(video(tmp_path, "a", (0, 0, 0)), "a", "")
    assert write_sheet(tmp_path / "sheet.png", [row] * 5) == 2


@pytest.mark.parametrize(
    ("num_frames", "num_columns", "indices"), [(48, 4, [0, 16, 31, 47]), (3, 3, [0, 1, 2]), (1, 1, [0]), (9, 2, [0, 8])]
)
def test_spaced_indices(num_frames, num_columns, indices):
    assert spaced_indices(num_frames, num_columns) == indices
