"""Draws what a walk model makes of squares on some maps: the map itself, and views of the way, the last over the first.

                       0    50   100   150
      +----------+   [  ]  [  ]  [  ]  [  ]   the first view is given, the others are invented
      |   map    |
      +----------+   [  ]                     after 200 frames: the first view again

python tools/walk_sheet.py WEIGHTS sheet.png --frames 201 --maps 3
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pagedvid.models.walk.spec import VIEW_CELLS
from pagedvid.models.walk.weights import load_walk
from pagedvid.models.walk.world import render
from walk_check import square, walk

VIEW = 128
"""Pixels of a shown frame; the map takes two rows of them."""
MAP_CELLS = 34
"""Height and width of what is shown of a map; the first view is in its middle."""
NUM_VIEWS = 4
_GAP, _LABEL_HEIGHT = 8, 20
_PAPER, _INK = (250, 250, 248), (24, 24, 28)


def draw_sheet(map_seeds: Sequence[int], videos: Sequence[np.ndarray]) -> Image.Image:
    """`videos`: uint8 [frames, 64, 64, 3] of a square on each map."""
    map_size = 2 * VIEW + _LABEL_HEIGHT
    width = map_size + NUM_VIEWS * (VIEW + _GAP) + 2 * _GAP
    block_height = map_size + _LABEL_HEIGHT + 2 * _GAP
    sheet = Image.new("RGB", (width, len(videos) * block_height), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (seed, video) in enumerate(zip(map_seeds, videos, strict=True)):
        top = number * block_height + _GAP
        corner = (VIEW_CELLS - MAP_CELLS) // 2
        whole_map = Image.fromarray(render(seed, corner, corner, MAP_CELLS, MAP_CELLS))
        sheet.paste(whole_map.resize((map_size, map_size), Image.Resampling.LANCZOS), (_GAP, top + _LABEL_HEIGHT))
        pen.text((_GAP, top), f"map {seed}", fill=_INK, font=font)
        shown = np.linspace(0, len(video) - 1, NUM_VIEWS + 1).astype(int).tolist()
        for column, frame in enumerate(shown):
            is_last = column == NUM_VIEWS
            left = map_size + 2 * _GAP + (0 if is_last else column * (VIEW + _GAP))
            upper = top + (VIEW + _LABEL_HEIGHT if is_last else 0)
            pen.text((left, upper), f"frame {frame}", fill=_INK, font=font)
            view = Image.fromarray(video[frame]).resize((VIEW, VIEW), Image.Resampling.NEAREST)
            sheet.paste(view, (left, upper + _LABEL_HEIGHT))
    return sheet


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("sheet", type=Path, help="picture to write")
    parser.add_argument("--frames", type=int, default=201, help="of the form 4 n + 1")
    parser.add_argument("--maps", type=int, default=3)
    parsed = parser.parse_args()
    seeds = range(parsed.maps)
    videos = walk(load_walk(parsed.weights), [f"map {seed}: {square(parsed.frames)}" for seed in seeds], parsed.frames)
    draw_sheet(seeds, videos).save(parsed.sheet)


if __name__ == "__main__":
    main()
