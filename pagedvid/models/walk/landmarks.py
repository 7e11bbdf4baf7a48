"""The landmarks: 8 shapes in 4 colours, 32 kinds, each 5 x 5 pixels in the middle of its cell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

CELL_SIZE = 8
"""Height and width of a cell in pixels."""
SHAPE_SIZE = 5
"""Height and width of a landmark in pixels."""
PLACE = 2
"""Pixels of its cell above a landmark, and left of it."""
COLORS: Mapping[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "red": (214, 36, 44),
    "black": (16, 16, 20),
    "violet": (176, 48, 214),
}
"""Far from those of terrain, water and paths."""
_DRAWINGS: Mapping[str, str] = {
    "tree": "..#.. .###. ##### ..#.. ..#..",
    "house": "..#.. .###. ##### #.#.# #.###",
    "ring": ".###. #...# #...# #...# .###.",
    "cross": "#...# .#.#. ..#.. .#.#. #...#",
    "gate": "##### #...# #...# #...# #...#",
    "tower": ".###. ..#.. ..#.. ..#.. #####",
    "block": "##### ##### ##### ##### #####",
    "stairs": "#.... ##... ###.. ####. #####",
}
NUM_KINDS = len(_DRAWINGS) * len(COLORS)
MASKS = np.array([[[pixel == "#" for pixel in row] for row in drawing.split()] for drawing in _DRAWINGS.values()])
"""bool [shapes, 5, 5]."""


def landmark_mask(kind: int) -> np.ndarray:
    """The pixels of a kind, bool [5, 5]."""
    mask: np.ndarray = MASKS[kind // len(COLORS)]
    return mask


def landmark_color(kind: int) -> str:
    """The colour of a kind."""
    return tuple(COLORS)[kind % len(COLORS)]
