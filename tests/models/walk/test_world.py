"""Maps: the same from every window and in every run, with landmarks inside their cells and on land."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pagedvid.models.walk.landmarks import CELL_SIZE, COLORS, MASKS, NUM_KINDS, PLACE, SHAPE_SIZE
from pagedvid.models.walk.world import (
    FIELD_PIXELS,
    PATH,
    RANGE_BITS,
    TERRAIN_STOPS,
    WATER,
    field,
    hashed,
    landmarks,
    render,
)


def test_a_map_is_drawn_as_it_always_was():
    image = render(7, -3, 5, 12, 16)
    assert image.shape == (96, 128, 3) and image.dtype == np.uint8
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == "f03955140fcb2c87"


def test_other_seeds_give_other_maps():
    images = [render(seed, 0, 0, 8, 8) for seed in range(4)]
    assert all((images[i] != images[j]).mean() > 0.3 for i in range(4) for j in range(i))


@pytest.mark.parametrize(("top", "left"), [(-20, -20), (-1, 3), (0, 0), (1000, -70_000)])
def test_every_window_shows_the_same_map(top: int, left: int):
    whole = render(3, top, left, 20, 20)
    for down, right in ((0, 0), (5, 1), (12, 12)):
        part = render(3, top + down, left + right, 8, 8)
        y, x = down * CELL_SIZE, right * CELL_SIZE
        assert np.array_equal(part, whole[y : y + 8 * CELL_SIZE, x : x + 8 * CELL_SIZE])


@pytest.mark.parametrize("name", FIELD_PIXELS)
def test_fields_are_smooth_across_lattice_lines_and_keep_their_range(name: str):
    values = field(5, name, -300, -300, 600, 600)
    assert values.min() >= 0 and values.max() < 2**RANGE_BITS
    steepest = 2**RANGE_BITS * 1.5 / FIELD_PIXELS[name]
    for axis in (0, 1):
        assert np.abs(np.diff(values, axis=axis)).max() <= steepest + 1


def test_a_field_has_the_values_of_its_lattice_and_blends_between_them():
    spacing = FIELD_PIXELS["height"]
    values = field(9, "height", 0, 0, spacing + 1, spacing + 1)
    purpose = list(FIELD_PIXELS).index("height")
    corners = hashed(9, purpose, *np.ogrid[0:2, 0:2]) >> np.uint64(64 - RANGE_BITS)
    assert values[::spacing, ::spacing].tolist() == corners.tolist()
    f = 16 / spacing
    weight = 3 * f**2 - 2 * f**3
    expected = (1 - weight) * float(corners[0, 0]) + weight * float(corners[1, 0])
    assert abs(values[16, 0] - expected) <= 1


def test_random_bits_differ_by_place_seed_and_purpose():
    bits = np.stack([hashed(s, p, *np.ogrid[-40:40, -40:40]) for s in (0, 1, 2**40) for p in (0, 1)])
    assert len(np.unique(bits)) == bits.size
    ones = np.unpackbits(bits.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.01


def test_landmarks_are_drawn_in_their_cells_and_nowhere_else():
    image, found = render(11, -30, -30, 60, 60), landmarks(11, -30, -30, 60, 60)
    assert 60 * 60 * 0.05 < len(found) < 60 * 60 * 0.16
    assert {landmark.kind for landmark in found.values()} == set(range(NUM_KINDS))
    assert {(it.row, it.column) for it in found.values()} == {(PLACE, PLACE)}
    is_color = (image[:, :, None] == np.array(list(COLORS.values()))).all(axis=-1).any(axis=-1)
    expected = np.zeros_like(is_color)
    for (row, column), it in found.items():
        y, x = (row + 30) * CELL_SIZE + it.row, (column + 30) * CELL_SIZE + it.column
        expected[y : y + SHAPE_SIZE, x : x + SHAPE_SIZE] |= MASKS[it.kind // len(COLORS)]
    assert np.array_equal(is_color, expected)


def test_landmarks_stand_on_land():
    for seed in range(6):
        image = render(seed, 0, 0, 30, 30)
        for (row, column), it in landmarks(seed, 0, 0, 30, 30).items():
            y, x = row * CELL_SIZE + it.row, column * CELL_SIZE + it.column
            box = image[y : y + SHAPE_SIZE, x : x + SHAPE_SIZE].reshape(-1, 3).tolist()
            assert list(WATER) not in box and list(PATH) not in box


def test_landmarks_differ_from_everything_around_them():
    around = np.concatenate([TERRAIN_STOPS, [WATER, PATH]])
    apart = np.linalg.norm(np.array(list(COLORS.values()))[:, None] - around, axis=-1)
    assert apart.min() > 90
