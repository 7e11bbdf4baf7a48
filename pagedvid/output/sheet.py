"""sheet.png: one row of evenly spaced frames per video, under its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pagedvid.output.atomic import replacing
from pagedvid.output.video import count_frames, read_frames

SHEET_WIDTH = 1200
MAX_COLUMNS = 8
MAX_ROWS = 48
"""A sheet with more rows would be too tall to look at; the first videos are shown."""

_MARGIN, _GAP, _CAPTION_HEIGHT = 24, 6, 34
_BACKGROUND, _TEXT, _FAINT = (250, 250, 248), (24, 24, 28), (120, 120, 124)
_CAPTION_SIZE, _NOTE_SIZE = 18, 14


@dataclass(frozen=True)
class SheetRow:
    """One video of the sheet."""

    video: Path
    caption: str
    note: str
    """Small print at the right: id and seed."""


def write_sheet(path: Path, rows: list[SheetRow]) -> int:
    """Draws the sheet of the first `MAX_ROWS` videos and returns how many it shows. Raises OSError."""
    strips = [_draw_row(row) for row in rows[:MAX_ROWS]]
    height = _MARGIN + sum(strip.height + _MARGIN for strip in strips)
    sheet = Image.new("RGB", (SHEET_WIDTH, height), _BACKGROUND)
    top = _MARGIN
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + _MARGIN
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
    return len(strips)


def spaced_indices(num_frames: int, num_columns: int) -> list[int]:
    """Indices of evenly spaced frames, the first and the last among them: (48, 4) -> [0, 16, 31, 47]."""
    if num_columns == 1:
        return [0]
    return [round(column * (num_frames - 1) / (num_columns - 1)) for column in range(num_columns)]


def _draw_row(row: SheetRow) -> Image.Image:
    num_frames = count_frames(row.video)
    frames = read_frames(row.video, spaced_indices(num_frames, min(MAX_COLUMNS, num_frames)))
    width = (SHEET_WIDTH - 2 * _MARGIN - (MAX_COLUMNS - 1) * _GAP) // MAX_COLUMNS
    height = round(width * frames[0].shape[0] / frames[0].shape[1])
    strip = Image.new("RGB", (SHEET_WIDTH, _CAPTION_HEIGHT + height), _BACKGROUND)
    _draw_caption(strip, row)
    for column, frame in enumerate(frames):
        thumbnail = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
        strip.paste(thumbnail, (_MARGIN + column * (width + _GAP), _CAPTION_HEIGHT))
    return strip


def _draw_caption(strip: Image.Image, row: SheetRow) -> None:
    draw = ImageDraw.Draw(strip)
    baseline = _CAPTION_HEIGHT - 12
    note_font = ImageFont.load_default(_NOTE_SIZE)
    draw.text((SHEET_WIDTH - _MARGIN, baseline), row.note, fill=_FAINT, font=note_font, anchor="rs")
    room = SHEET_WIDTH - 3 * _MARGIN - draw.textlength(row.note, font=note_font)
    caption_font = ImageFont.load_default(_CAPTION_SIZE)
    caption = _shorten(draw, " ".join(row.caption.split()), caption_font, room)
    draw.text((_MARGIN, baseline), caption, fill=_TEXT, font=caption_font, anchor="ls")


def _shorten(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float
) -> str:
    """The text, cut with an ellipsis so that it is at most `room` pixels wide."""
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "...", font=font) > room:
        text = text[:-1]
    return text.rstrip() + "..."
