"""Small tables of angles: they return the rope's own numbers for every token, or fall back to a row per token."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.rotary.axis_tables import AxisTables, follows_grid
from pagedvid.rotary.grid import RopeGrid
from pagedvid.rotary.tables import RopeTables, grid_of

GRID = RopeGrid(15, 5, (0, 2, 1, 0, 1, 2, 2, 0))
"""Frames of 3 x 5 tokens; pairs of the three axes in no order."""
FREQUENCIES = 3.0 ** -torch.linspace(0, 2, 8)


class Line:
    """A rope without a grid."""

    layout = "half"

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(first_token, first_token + num_tokens)[:, None] * FREQUENCIES
        return angles.cos(), angles.sin()


@dataclass(frozen=True)
class Grid:
    """Tables on `GRID`, whatever `grid` says of them."""

    grid: RopeGrid = GRID
    layout: str = "half"

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        token = torch.arange(first_token, first_token + num_tokens)
        coordinates = torch.stack([token // 15, token % 15 // 5, token % 5], dim=1)
        angles = coordinates[:, torch.tensor(GRID.axes)] * FREQUENCIES
        return angles.cos(), angles.sin()


def is_by_token(made: AxisTables) -> bool:
    return (made.frame_tokens, made.width, made.axes.tolist()) == (1, 1, [0] * 8)


def concatenated(rope: RopeTables, places: list[tuple[int, int]]) -> list[Tensor]:
    tables = [rope.tables(*place) for place in places]
    return [torch.cat([table[i] for table in tables]) for i in (0, 1)]


PLACES = {
    "whole": [(0, 45), (450, 30), (45, 15)],
    "the last frame of a chunk is cut": [(15, 37), (450, 16), (0, 29)],
    "shorter than a frame": [(30, 12), (0, 1), (45, 7)],
    "shorter than a row": [(30, 2), (0, 1), (45, 3)],
    "a whole frame with shorter ones": [(30, 4), (0, 15), (45, 11)],
    "one token, twice the same place": [(15, 1), (15, 1)],
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_every_token_gets_the_numbers_of_the_rope(places):
    made = AxisTables.of(Grid(), places)
    num_frames = [-(-num_tokens // 15) for _, num_tokens in places]
    assert made.frame_rows == tuple(8 + sum(num_frames[:number]) for number in range(len(places)))
    assert made.cos.shape == made.sin.shape == (8 + sum(num_frames), 8)
    assert made.cos.dtype == made.sin.dtype == torch.float32 and made.axes.dtype == torch.int32
    assert made.cos.is_contiguous() and made.sin.is_contiguous() and made.axes.tolist() == list(GRID.axes)
    assert (made.frame_tokens, made.width) == (15, 5)
    assert follows_grid(Grid(), places)
    for number, place in enumerate(places):  # without `at`: row by row, in the order that kernels read
        expected = Grid().tables(*place)
        for token in range(place[1]):
            rows = (made.frame_rows[number] + token // 15, token % 15 // 5, 3 + token % 5)
            for pair, axis in enumerate(GRID.axes):
                assert made.cos[rows[axis], pair] == expected[0][token, pair]
                assert made.sin[rows[axis], pair] == expected[1][token, pair]


@pytest.mark.parametrize(
    ("rope", "places"),
    [(Line(), [(0, 45), (7, 12)]), (Grid(), [(0, 45), (7, 12)]), (Grid(), [(5, 45)]), (Grid(), [(0, 1), (1, 1)])],
)
def test_without_frames_every_token_has_its_row(rope, places):
    """Ropes without a grid; and chunks that begin inside a frame, which affect all chunks of their step."""
    made = AxisTables.of(rope, places)
    assert is_by_token(made) and made.frame_rows == tuple([2, 2 + places[0][1]][: len(places)])
    for rows, expected in zip((made.cos[2:], made.sin[2:]), concatenated(rope, places), strict=True):
        assert torch.equal(rows, expected)
    assert follows_grid(rope, places)


def test_in_frames_of_one_token_all_pairs_rotate_with_time():
    rope = Grid(RopeGrid(1, 1, GRID.axes))
    assert is_by_token(AxisTables.of(rope, [(0, 20)]))
    assert follows_grid(rope, [(0, 20), (7, 3)])
    made = AxisTables.shifted(rope, [(20, 20)], [0])
    torch.testing.assert_close(made.at(0, 20), difference(rope, (20, 20), 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        RopeGrid(15, 5, (1, *GRID.axes[1:])),
        RopeGrid(15, 5, (*GRID.axes[:1], 1, *GRID.axes[2:])),
        RopeGrid(15, 3, GRID.axes),
        RopeGrid(30, 5, GRID.axes),
    ],
)
def test_a_grid_that_is_not_that_of_the_tables_is_noticed(wrong):
    assert follows_grid(Grid(), [(0, 60), (60, 60)])
    assert not follows_grid(Grid(wrong), [(0, 60), (60, 60)])


def difference(rope: RopeTables, place: tuple[int, int], stored: int) -> tuple[Tensor, Tensor]:
    """The angles that rotate keys from `stored` to `place`, by complex numbers."""
    here, there = (torch.complex(*rope.tables(first, place[1])) for first in (place[0], stored))
    rotation = here * there.conj()
    return rotation.real, rotation.imag


SHIFTS = [([(0, 45), (90, 30)], [60, 90]), ([(15, 7)], [150]), ([(30, 37), (0, 1)], [0, 30])]


@pytest.mark.parametrize(("places", "stored"), SHIFTS)
def test_between_frames_only_time_passes(places, stored):
    made = AxisTables.shifted(Grid(), places, stored)
    assert made.frame_tokens == 15 and made.frame_rows == AxisTables.of(Grid(), places).frame_rows
    assert bool((made.cos[:8] == 1).all()) and bool((made.sin[:8] == 0).all())
    for number, place in enumerate(places):
        shifted = made.at(number, place[1])
        torch.testing.assert_close(shifted, difference(Grid(), place, stored[number]), rtol=0, atol=1e-6)
        still = torch.tensor(GRID.axes) > 0
        assert bool((shifted[0][:, still] == 1).all()) and bool((shifted[1][:, still] == 0).all())


@pytest.mark.parametrize(
    ("rope", "places", "stored"),
    [
        (Line(), [(0, 45), (90, 30)], [60, 90]),
        (Grid(), [(0, 45), (90, 30)], [60, 91]),  # stored inside a frame
        (Grid(), [(2, 45), (90, 30)], [60, 90]),  # read inside a frame
    ],
)
def test_between_other_places_every_token_has_its_own_angle(rope, places, stored):
    made = AxisTables.shifted(rope, places, stored)
    assert is_by_token(made) and made.frame_rows == (2, 47)
    for number, place in enumerate(places):
        torch.testing.assert_close(
            made.at(number, place[1]), difference(rope, place, stored[number]), rtol=0, atol=1e-6
        )


def test_each_stored_position_needs_its_place():
    with pytest.raises(ValueError, match="argument"):
        AxisTables.shifted(Grid(), [(0, 15), (15, 15)], [0])


def test_the_grid_of_a_rope():
    assert grid_of(Grid(), 8) is GRID and GRID.height == 3
    assert grid_of(Line(), 4) == RopeGrid(1, 1, (0, 0, 0, 0)) == RopeGrid.by_token(4)
    assert RopeGrid.split(3, 5, (2, 1, 3)) == RopeGrid(15, 5, (0, 0, 1, 2, 2, 2))


@pytest.mark.parametrize(
    ("frame_tokens", "width", "axes", "message"),
    [
        (15, 4, (0,), "a frame of 15 tokens cannot be split into rows of 4; frame_tokens must be a multiple of width"),
        (0, 1, (0,), "a frame of 0 tokens"),
        (15, 0, (0,), "rows of 0"),
        (15, 5, (0, 3, -1, 2), r"axes of rotary pairs are \[-1, 3\]; allowed are 0 \(time\), 1 \(row\), 2 \(column\)"),
    ],
)
def test_impossible_grids_are_refused(frame_tokens, width, axes, message):
    with pytest.raises(ConfigError, match=message):
        RopeGrid(frame_tokens, width, axes)


def test_a_grid_that_does_not_fit_its_rope_is_refused():
    with pytest.raises(ConfigError, match="the grid of a Grid has axes of 3 pairs, its tables have 8 columns"):
        AxisTables.of(Grid(RopeGrid(15, 5, (0, 1, 2))), [(0, 15)])
    with pytest.raises(ConfigError, match=r"the grid of a Grid is \(3, 5\); give a RopeGrid, or leave it out"):
        AxisTables.of(Grid((3, 5)), [(0, 15)])
