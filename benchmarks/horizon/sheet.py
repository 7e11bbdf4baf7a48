"""A picture of one trip with every storage: views of the way out, and below them what was there on the way back.

               16    48    96   240 later
first visit   [  ]  [  ]  [  ]  [  ]
bf16          [  ]  [  ]  [  ]  [  ]
first visit   [  ]  [  ]  [  ]  [  ]
balanced      [  ]  [  ]  [  ]  [  ]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

VIEW = 96
"""Pixels of a shown frame."""
_MARGIN, _GAP, _LABEL_WIDTH, _NUMBER_HEIGHT = 12, 6, 168, 22
_PAPER, _INK = (250, 250, 248), (24, 24, 28)


def draw_strips(videos: Mapping[str, np.ndarray], distances: Sequence[int], path: Path) -> None:
    """`videos`: frames [2 M + 1, H, W, 3] of the same trip, by what is written in front. Their ways out differ where
    the model invents, so every storage has its own first visits above its second ones."""
    num_columns, row_height = len(distances), 2 * VIEW + 3 * _GAP
    width = 2 * _MARGIN + _LABEL_WIDTH + num_columns * (VIEW + _GAP)
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _NUMBER_HEIGHT + len(videos) * row_height), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    lefts = [_MARGIN + _LABEL_WIDTH + column * (VIEW + _GAP) for column in range(num_columns)]
    for left, distance in zip(lefts, distances, strict=True):
        pen.text((left + VIEW // 2, _MARGIN), f"{distance} later", fill=_INK, font=font, anchor="ma")
    for number, (name, frames) in enumerate(videos.items()):
        top = _MARGIN + _NUMBER_HEIGHT + number * row_height
        pen.text((_MARGIN, top + VIEW // 2), "first visit", fill=_INK, font=font, anchor="lm")
        pen.text((_MARGIN, top + VIEW + _GAP + VIEW // 2), name, fill=_INK, font=font, anchor="lm")
        middle = len(frames) // 2
        for left, distance in zip(lefts, distances, strict=True):
            for row, frame in enumerate((middle - distance // 2, middle + distance // 2)):
                view = Image.fromarray(frames[frame]).resize((VIEW, VIEW), Image.Resampling.NEAREST)
                sheet.paste(view, (left, top + row * (VIEW + _GAP)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
