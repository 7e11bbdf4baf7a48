"""The contact sheet."""

from __future__ import annotations

import logging
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pagedvid.output import sheet
from pagedvid.output.sheet import SHEET_WIDTH, SheetRow, spaced_indices, write_sheet
from tests.output.test_mp4 import write


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
    captions = ("x " * 500_000, "x" * 10**6, "two\nlines", "ein Kreis, 赤い円", "", "\x00 \ud83d \u200d")
    rows = [SheetRow(path, caption, "id  seed 0") for caption in captions]
    rows.append(SheetRow(path, "a", "W" * 120 + "  seed 9223372036854775807"))
    assert write_sheet(tmp_path / "sheet.png", rows) == 7


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


def test_a_video_that_cannot_be_read_leaves_the_others_on_the_sheet(tmp_path, caplog):
    good, torn = video(tmp_path, "a", (230, 30, 35)), tmp_path / "torn.mp4"
    torn.write_bytes(good.read_bytes()[:-100])
    (tmp_path / "empty.mp4").touch()
    videos = [torn, good, tmp_path / "empty.mp4", tmp_path / "gone.mp4"]
    with caplog.at_level(logging.WARNING):
        assert write_sheet(tmp_path / "sheet.png", [SheetRow(path, path.name, "") for path in videos]) == 4
    red = count_pixels(Image.open(tmp_path / "sheet.png").convert("RGB"), (230, 30, 35))
    assert red > 8 * 130**2
    assert [line.split()[0] for line in caplog.messages] == ["torn.mp4", "empty.mp4", "gone.mp4"]


class TestFonts:
    """The sheet's default font has little more than ASCII. DejaVu, part of matplotlib, has Cyrillic but no Chinese."""

    DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"

    @pytest.fixture
    def installed(self, monkeypatch):
        """Tells the sheet which font is installed."""
        return lambda font: monkeypatch.setattr(sheet, "system_font", lambda letters: font)

    @pytest.mark.parametrize(
        ("text", "font", "shown"),
        [
            ("a red circle", None, "a red circle"),
            ("красный", None, r"\u043a\u0440\u0430\u0441\u043d\u044b\u0439"),
            ("красный круг", (DEJAVU, 0), "красный круг"),
            ("круг 红 a", (DEJAVU, 0), r"круг \u7ea2 a"),
            ("круг", (Path("gone.ttf"), 0), r"\u043a\u0440\u0443\u0433"),
            ("a\x00b", (DEJAVU, 0), r"a\x00b"),
        ],
    )
    def test_letters_that_no_font_has_are_written_as_their_codes(self, installed, text, font, shown):
        installed(font)
        line = sheet._Line(text, 18, room=900)
        assert line.shown == shown
        assert line.missing == {letter for letter in text if letter not in shown}

    def test_a_box_is_never_drawn(self, installed):
        """Each letter is drawn as its font draws it, and never as the box of a missing letter."""
        installed((self.DEJAVU, 0))
        line = sheet._Line("red, красный, 红", 18, room=900)
        fonts = {piece: font for piece, font in line._pieces(line.shown)}
        assert {font.getname()[0] for font in fonts.values()} == {"Aileron", "DejaVu Sans"}
        for piece, font in fonts.items():
            box = font.getmask("\U0010ffff")
            assert not any(bytes(font.getmask(letter)) == bytes(box) for letter in piece if letter != " ")

    def test_pieces_are_drawn_side_by_side(self, installed):
        installed((self.DEJAVU, 0))
        line = sheet._Line("red круг 红", 18, room=900)
        picture = Image.new("L", (400, 40))
        line.draw(ImageDraw.Draw(picture), 5, 25, 255)
        left, _, right, _ = picture.getbbox()
        assert left >= 5 and right == pytest.approx(5 + line.width(line.shown), abs=3)

    def test_what_could_not_be_drawn_is_said_once(self, installed, tmp_path, caplog):
        installed(None)
        rows = [SheetRow(video(tmp_path, "a", (0, 0, 0)), caption, "a") for caption in ("红色", "红", "plain")]
        with caplog.at_level(logging.WARNING):
            write_sheet(tmp_path / "sheet.png", rows)
        (message,) = caplog.messages
        assert message.startswith("sheet.png: no font here has all letters") and r"\u7ea2\u8272" in message

    def test_every_font_is_asked_itself(self):
        own, dejavu = ImageFont.load_default(18), ImageFont.truetype(str(self.DEJAVU), 18)
        assert sheet._missing("aя红 é", own) == {"я", "红", "é"}
        assert sheet._missing("aя红 é", dejavu) == {"红"}
