"""Sheets of frames: sheet.png, with one row of evenly spaced frames per video under its prompt, and others like it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pagedvid.files.atomic import replacing
from pagedvid.output.lettering import escape, one_line, shorten, system_font
from pagedvid.output.mp4 import Frames, count_frames, read_frames

logger = logging.getLogger(__name__)

SHEET_WIDTH = 1200
MAX_COLUMNS = 8
MAX_ROWS = 48
"""A sheet with more rows would be too tall to look at."""

_MARGIN, _GAP, _CAPTION_HEIGHT = 24, 6, 34
_BACKGROUND, _TEXT, _FAINT = (250, 250, 248), (24, 24, 28), (120, 120, 124)
_CAPTION_SIZE, _NOTE_SIZE = 18, 14
_NOTE_SHARE = 0.6
"""Largest share of the width for the small print."""
_NO_CHARACTER = "\U0010ffff"
"""No font has this character, so it is drawn as the box that fonts draw for missing letters."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class SheetRow:
    """One video of the sheet."""

    video: Path
    caption: str
    note: str
    """Small print on the right: id and seed."""


@dataclass(frozen=True)
class Block:
    """Rows of frames under one caption."""

    caption: str
    note: str
    """Small print on the right."""
    rows: Sequence[Sequence[Frames]]
    """At most `MAX_COLUMNS` frames a row, all of one size."""


def write_sheet(path: Path, rows: Sequence[SheetRow]) -> int:
    """Draws the sheet of the first `MAX_ROWS` videos and returns how many it shows. Raises OSError.

    A video that cannot be read gets an empty row. This, and letters that no font has, are logged as warnings.
    """
    return draw_sheet(path, (Block(row.caption, row.note, _spaced_frames(row.video)) for row in rows[:MAX_ROWS]))


def draw_sheet(path: Path, blocks: Iterable[Block]) -> int:
    """Draws blocks below each other, one in memory at a time, and returns their number. Raises OSError.

    Letters that no font has are logged as warnings.
    """
    missing: set[str] = set()
    strips = [_draw_block(block, missing) for block in blocks]
    height = _MARGIN + sum(strip.height + _MARGIN for strip in strips)
    sheet = Image.new("RGB", (SHEET_WIDTH, height), _BACKGROUND)
    top = _MARGIN
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + _MARGIN
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
    if missing:
        shown = escape("".join(sorted(missing)[:10]), missing)
        logger.warning("%s: no font here has all letters of the prompts; some are shown as %s", path.name, shown)
    return len(strips)


def spaced_indices(num_frames: int, num_columns: int) -> list[int]:
    """Indices of evenly spaced frames, the first and the last among them: (48, 4) -> [0, 16, 31, 47]."""
    if num_columns == 1:
        return [0]
    return [round(column * (num_frames - 1) / (num_columns - 1)) for column in range(num_columns)]


def _spaced_frames(video: Path) -> list[list[Frames]]:
    """One row of a video's frames; none if it cannot be read."""
    try:
        num_frames = count_frames(video)
        return [read_frames(video, spaced_indices(num_frames, min(MAX_COLUMNS, num_frames)))]
    except Exception as error:  # whatever is wrong with this video, the others still get their rows
        logger.warning("%s has no frames on the sheet: it cannot be read (%s)", video.name, error)
        return []


def _draw_block(block: Block, missing: set[str]) -> Image.Image:
    """A caption and thumbnails; adds the letters that no font has to `missing`."""
    width = (SHEET_WIDTH - 2 * _MARGIN - (MAX_COLUMNS - 1) * _GAP) // MAX_COLUMNS
    rows = [[_thumbnail(frame, width) for frame in frames] for frames in block.rows]
    height = sum(row[0].height for row in rows) + _GAP * max(len(rows) - 1, 0)
    strip = Image.new("RGB", (SHEET_WIDTH, _CAPTION_HEIGHT + height), _BACKGROUND)
    missing |= _draw_caption(ImageDraw.Draw(strip), block)
    top = _CAPTION_HEIGHT
    for row in rows:
        for column, thumbnail in enumerate(row):
            strip.paste(thumbnail, (_MARGIN + column * (width + _GAP), top))
        top += row[0].height + _GAP
    return strip


def _thumbnail(frame: Frames, width: int) -> Image.Image:
    height = max(1, round(width * frame.shape[0] / frame.shape[1]))
    return Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)


def _draw_caption(draw: ImageDraw.ImageDraw, block: Block) -> set[str]:
    """Draws caption and note; returns the letters that no font has."""
    baseline = _CAPTION_HEIGHT - 12
    note = _Line(block.note, _NOTE_SIZE, room=_NOTE_SHARE * SHEET_WIDTH)
    note_width = note.width(note.shown)
    note.draw(draw, SHEET_WIDTH - _MARGIN - note_width, baseline, _FAINT)
    caption = _Line(block.caption, _CAPTION_SIZE, room=SHEET_WIDTH - 3 * _MARGIN - note_width)
    caption.draw(draw, _MARGIN, baseline, _TEXT)
    return note.missing | caption.missing


class _Line:
    """A text on one line of `room` pixels: each letter in a font that has it, or as its code if no font has it.

    The default font has all letters of codes. It draws the whole text if it can, else one installed font does, else
    several.
    """

    def __init__(self, text: str, size: int, room: float) -> None:
        text = one_line(text, most=SHEET_WIDTH)
        self._font: Font = ImageFont.load_default(size)
        self._others: dict[str, Font] = {}
        """Fonts of the letters that `_font` does not draw."""
        self.missing = _missing(text, self._font)
        """Letters that no font has."""
        if self.missing and (font := _system_font(frozenset(text), size)) and not _missing(text, font):
            self._others, self.missing = dict.fromkeys(text, font), set()
        while self.missing and (font := _system_font(frozenset(self.missing), size)):
            found = self.missing - _missing(self.missing, font)
            if not found:
                break
            self._others |= dict.fromkeys(found, font)
            self.missing -= found
        self.shown = shorten(escape(text, self.missing), room, self.width)
        """The text as it is drawn."""

    def width(self, text: str) -> float:
        """Pixels of a part of the text."""
        return sum(font.getlength(piece) for piece, font in self._pieces(text))

    def draw(self, draw: ImageDraw.ImageDraw, left: float, baseline: float, color: tuple[int, int, int]) -> None:
        """Draws the text from `left` on."""
        for piece, font in self._pieces(self.shown):
            draw.text((left, baseline), piece, fill=color, font=font, anchor="ls")
            left += font.getlength(piece)

    def _pieces(self, text: str) -> Iterator[tuple[str, Font]]:
        for font, letters in groupby(text, key=lambda letter: self._others.get(letter, self._font)):
            yield "".join(letters), font


def _system_font(letters: frozenset[str], size: int) -> Font | None:
    """The installed font that has most of these letters; None when none is known or it cannot be used."""
    found = system_font(letters)
    if found is None:
        return None
    file, number = found
    try:
        return ImageFont.truetype(str(file), size, number)
    except OSError:  # bitmaps of another size, or the file is gone
        return None


def _missing(letters: Iterable[str], font: Font) -> set[str]:
    """The letters that a font draws as the box of a missing letter."""
    box = _drawn(_NO_CHARACTER, font)
    return {letter for letter in set(letters) if letter != " " and _drawn(letter, font) == box}


def _drawn(letter: str, font: Font) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
