"""A contact sheet of generated videos: under every prompt, one strip of frames per cache.

       0     6     12    18       200   206   212
bf16  [  ]  [  ]  [  ]  [  ]     [  ]  [  ]  [  ]
int2  [  ]  [  ]  [  ]  [  ]     [  ]  [  ]  [  ]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pagedvid.models.demo.world import FRAME_SIZE

CELL = 3 * FRAME_SIZE
"""Pixels of one shown frame."""
_MARGIN, _GAP, _BREAK, _LABEL_WIDTH = 20, 4, 20, 72
_PROMPT_HEIGHT, _NUMBER_HEIGHT = 30, 18
_PAPER, _INK, _FAINT = (250, 250, 248), (24, 24, 28), (110, 110, 114)
_PROMPT_SIZE, _LABEL_SIZE, _NUMBER_SIZE = 19, 15, 12


def draw_sheet(
    prompts: Sequence[str], videos: Mapping[str, Sequence[np.ndarray]], shown: Sequence[Sequence[int]]
) -> Image.Image:
    """Draws the sheet.

    `videos`: by cache, one uint8 [F, 32, 32, 3] per prompt. `shown`: groups of frame numbers, separated by a gap.
    """
    lefts = _column_lefts(shown)
    block_height = _PROMPT_HEIGHT + _NUMBER_HEIGHT + len(videos) * (CELL + _GAP) + _MARGIN
    sheet = Image.new("RGB", (max(lefts.values()) + CELL + _MARGIN, _MARGIN + len(prompts) * block_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, prompt in enumerate(prompts):
        top = _MARGIN + number * block_height
        draw.text((_MARGIN, top), prompt, fill=_INK, font=ImageFont.load_default(_PROMPT_SIZE))
        top += _PROMPT_HEIGHT
        for frame, left in lefts.items():
            font = ImageFont.load_default(_NUMBER_SIZE)
            draw.text((left + CELL // 2, top), str(frame), fill=_FAINT, font=font, anchor="ma")
        top += _NUMBER_HEIGHT
        for cache, by_prompt in videos.items():
            font = ImageFont.load_default(_LABEL_SIZE)
            draw.text((_MARGIN, top + CELL // 2), cache, fill=_INK, font=font, anchor="lm")
            for frame, left in lefts.items():
                cell = Image.fromarray(by_prompt[number][frame]).resize((CELL, CELL), Image.Resampling.NEAREST)
                sheet.paste(cell, (left, top))
            top += CELL + _GAP
    return sheet


def _column_lefts(shown: Sequence[Sequence[int]]) -> dict[int, int]:
    """Left edge of every frame's column."""
    lefts, left = {}, _MARGIN + _LABEL_WIDTH
    for group in shown:
        for frame in group:
            lefts[frame] = left
            left += CELL + _GAP
        left += _BREAK
    return lefts
