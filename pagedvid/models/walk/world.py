"""The world that the walk model learns: unbounded maps of square cells, each map from a seed, and how they are drawn.

A cell is 8 x 8 pixels. Terrain, water and paths are read off three smooth fields of integers and run on across cells;
a landmark stands inside one cell. Everything is a function of the seed and of world coordinates, in whole numbers only,
so every window onto a map shows the same pixels on every machine.

Axes: H rows and W columns of pixels, R rows and C columns of cells, P rows and Q columns of the pixels of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pagedvid.models.walk.landmarks import (
    CELL_SIZE,
    COLORS,
    NUM_KINDS,
    PLACE,
    SHAPE_SIZE,
    landmark_color,
    landmark_mask,
)

TERRAIN_STOPS = np.array([(206, 190, 134), (138, 184, 92), (64, 130, 78), (112, 120, 132)], dtype=np.int64)
"""Sand, meadow, forest, rock: the terrain runs smoothly from one to the next."""
WATER = (52, 104, 196)
PATH = (146, 100, 58)
FIELD_PIXELS = {"soil": 128, "height": 64, "track": 96}
"""How far apart the random values of each field are, in pixels; between them it is smooth."""
WATER_BELOW = 20_000
PATH_WITHIN = 1_100
"""A path runs where the track field is this close to half its range."""
LANDMARK_PERCENT = 16
"""Of the cells, before those with water or a path under the landmark lose theirs."""
RANGE_BITS = 16
"""Fields are 0 .. 2^16 - 1."""


@dataclass(frozen=True)
class Landmark:
    """A landmark of one cell."""

    kind: int
    """0 .. NUM_KINDS - 1."""
    row: int
    """Pixels of the cell above it."""
    column: int
    """Pixels of the cell left of it."""


def hashed(seed: int, purpose: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Random bits for integer coordinates, uint64 of the broadcast shape; `purpose` tells uses of one place apart."""
    with np.errstate(over="ignore"):
        x = np.uint64(seed % 2**64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(purpose) * np.uint64(0xD1B54A32D192ED03)
        for coordinates in (rows, columns):
            x = _mixed(x + coordinates.astype(np.int64).astype(np.uint64) * np.uint64(0xA0761D6478BD642F))
    return x


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def field(seed: int, name: str, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A smooth field at pixels, int64 [H, W] in 0 .. 2^16 - 1: random at lattice points, blended in between."""
    spacing, purpose = FIELD_PIXELS[name], list(FIELD_PIXELS).index(name)
    row, down = np.divmod(np.arange(top, top + height, dtype=np.int64), spacing)
    column, right = np.divmod(np.arange(left, left + width, dtype=np.int64), spacing)
    lattice_rows = np.arange(row[0], row[-1] + 2)[:, None]
    lattice_columns = np.arange(column[0], column[-1] + 2)[None, :]
    values = (hashed(seed, purpose, lattice_rows, lattice_columns) >> np.uint64(64 - RANGE_BITS)).astype(np.int64)
    row, column = row - row[0], column - column[0]
    upper = _blended(values[row], values[row + 1], down[:, None], spacing)
    return _blended(upper[:, column], upper[:, column + 1], right[None, :], spacing)


def _blended(start: np.ndarray, end: np.ndarray, offset: np.ndarray, spacing: int) -> np.ndarray:
    """From `start` to `end` along a curve that is flat at both (3 f^2 - 2 f^3)."""
    weight = 3 * offset**2 * spacing - 2 * offset**3
    return start + (end - start) * weight // spacing**3


def landmarks(seed: int, top: int, left: int, rows: int, columns: int) -> dict[tuple[int, int], Landmark]:
    """The landmarks in a window of cells by world (row, column) of their cells."""
    is_land_RPCQ = _is_land(seed, top, left, rows, columns).reshape(rows, CELL_SIZE, columns, CELL_SIZE)
    bits_RC = hashed(seed, len(FIELD_PIXELS), *np.ogrid[top : top + rows, left : left + columns])
    found, under = {}, slice(PLACE, PLACE + SHAPE_SIZE)
    for r, c in zip(*np.nonzero(bits_RC % np.uint64(100) < LANDMARK_PERCENT), strict=True):
        kind = (int(bits_RC[r, c]) >> 16) % NUM_KINDS
        if is_land_RPCQ[r, under, c, under].all():
            found[top + int(r), left + int(c)] = Landmark(kind, PLACE, PLACE)
    return found


def _is_land(seed: int, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    """Whether pixels have neither water nor a path, bool [H, W]."""
    window = (top * CELL_SIZE, left * CELL_SIZE, rows * CELL_SIZE, columns * CELL_SIZE)
    return (field(seed, "height", *window) >= WATER_BELOW) & ~_is_path(seed, window)


def _is_path(seed: int, window: tuple[int, int, int, int]) -> np.ndarray:
    return np.abs(field(seed, "track", *window) - 2 ** (RANGE_BITS - 1)) < PATH_WITHIN


def render(seed: int, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    """The window of `rows` x `columns` cells whose first cell is (top, left): uint8 [rows * 8, columns * 8, 3].

    `top` and `left` may be negative; the map has no end.
    """
    window = (top * CELL_SIZE, left * CELL_SIZE, rows * CELL_SIZE, columns * CELL_SIZE)
    image = _terrain(field(seed, "soil", *window))
    image[field(seed, "height", *window) < WATER_BELOW] = WATER
    image[_is_path(seed, window) & (field(seed, "height", *window) >= WATER_BELOW)] = PATH
    for (row, column), landmark in landmarks(seed, top, left, rows, columns).items():
        y, x = (row - top) * CELL_SIZE + landmark.row, (column - left) * CELL_SIZE + landmark.column
        box = image[y : y + SHAPE_SIZE, x : x + SHAPE_SIZE]
        box[landmark_mask(landmark.kind)] = COLORS[landmark_color(landmark.kind)]
    return image.astype(np.uint8)


def _terrain(soil: np.ndarray) -> np.ndarray:
    """Colours of a field, int64 [H, W, 3]: straight lines between the stops."""
    stop, along = np.divmod(soil * (len(TERRAIN_STOPS) - 1), 2**RANGE_BITS)
    start, end = TERRAIN_STOPS[stop], TERRAIN_STOPS[stop + 1]
    return start + (end - start) * along[..., None] // 2**RANGE_BITS
