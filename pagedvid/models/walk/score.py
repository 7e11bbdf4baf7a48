"""How well a walk remembers: the landmarks of a first visit that are there again at the next one.

Landmarks are read from pixels alone, by colour and shape, so that the score needs nothing of the model.
"""

from __future__ import annotations

import numpy as np

from pagedvid.models.walk.landmarks import CELL_SIZE, COLORS, MASKS, SHAPE_SIZE
from pagedvid.models.walk.world import Landmark

NUM_PLACES = CELL_SIZE - SHAPE_SIZE + 1
"""Rows, and columns, of a cell at which a landmark can begin: a model may miss the middle."""
MAX_COLOR_DISTANCE = 70.0
"""Of a pixel from a landmark's colour, in RGB levels; terrain, water and paths are farther from all of them."""
MIN_OVERLAP = 0.75
"""Least intersection over union of the pixels of a landmark's colour and those of the shape."""
NEAR_PIXELS = 1
"""How far apart two places of one landmark may be, by row and by column."""


def _templates() -> np.ndarray:
    """Every shape at every place of a cell, bool [shapes, places, places, 8, 8]."""
    drawn = np.zeros((len(MASKS), NUM_PLACES, NUM_PLACES, CELL_SIZE, CELL_SIZE), dtype=bool)
    for row in range(NUM_PLACES):
        for column in range(NUM_PLACES):
            drawn[:, row, column, row : row + SHAPE_SIZE, column : column + SHAPE_SIZE] = MASKS
    return drawn


TEMPLATES = _templates()


def read_landmarks(frame: np.ndarray) -> dict[tuple[int, int], Landmark]:
    """The landmarks of a frame, uint8 [H, W, 3] of whole cells, by (row, column) of their cells in the frame."""
    rows, columns = frame.shape[0] // CELL_SIZE, frame.shape[1] // CELL_SIZE
    cells = frame.astype(np.float32).reshape(rows, CELL_SIZE, columns, CELL_SIZE, 3).swapaxes(1, 2)
    found = {}
    for row in range(rows):
        for column in range(columns):
            landmark = _read_cell(cells[row, column])
            if landmark is not None:
                found[row, column] = landmark
    return found


def _read_cell(cell: np.ndarray) -> Landmark | None:
    """The landmark of a cell, float32 [8, 8, 3]; None where no shape overlaps well with the pixels of one colour."""
    distance_PQK = np.linalg.norm(cell[:, :, None] - np.array(list(COLORS.values()), dtype=np.float32), axis=-1)
    best, best_overlap = None, MIN_OVERLAP
    for color in range(len(COLORS)):
        is_color = distance_PQK[..., color] < MAX_COLOR_DISTANCE
        if not is_color.any():
            continue
        overlap = (TEMPLATES & is_color).sum(axis=(-2, -1)) / (TEMPLATES | is_color).sum(axis=(-2, -1))
        shape, row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        if overlap[shape, row, column] >= best_overlap:
            best_overlap = overlap[shape, row, column]
            best = Landmark(int(shape) * len(COLORS) + color, int(row), int(column))
    return best


def same_landmarks(first: dict[tuple[int, int], Landmark], again: dict[tuple[int, int], Landmark]) -> int:
    """How many landmarks of the first view are in the second one: of the same kind, within `NEAR_PIXELS`."""
    return sum(
        cell in again
        and again[cell].kind == landmark.kind
        and abs(again[cell].row - landmark.row) <= NEAR_PIXELS
        and abs(again[cell].column - landmark.column) <= NEAR_PIXELS
        for cell, landmark in first.items()
    )
