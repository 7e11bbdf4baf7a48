"""World coordinates: numbers of frames and back, and angles that depend on the place alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.errors import ConfigError, ShapeError
from pagedvid.models.walk.actions import MOVES
from pagedvid.models.walk.rotary import MAX_COORDINATE, TRACK_FRAMES, WorldRotary, cells_in_view, place_of, position_of
from pagedvid.models.walk.spec import TOKENS_PER_FRAME
from pagedvid.rotary.tables import rotate

COORDINATES = st.integers(-MAX_COORDINATE, MAX_COORDINATE - 1)
MOVE = st.sampled_from(list(MOVES.values()))


@given(COORDINATES, COORDINATES, MOVE)
def test_a_position_says_where_every_frame_of_its_track_is(row: int, column: int, move: tuple[int, int]):
    position = position_of(row, column, move)
    assert 0 <= position * TOKENS_PER_FRAME < 2**63
    for frame in range(TRACK_FRAMES):
        assert place_of(position + frame) == (row + frame * move[0], column + frame * move[1])


@given(st.tuples(COORDINATES, COORDINATES, MOVE), st.tuples(COORDINATES, COORDINATES, MOVE))
def test_different_tracks_have_different_positions(one, other):
    assert (position_of(*one) == position_of(*other)) == (one == other)


@pytest.mark.parametrize("place", [(MAX_COORDINATE, 0), (0, -MAX_COORDINATE - 1)])
def test_the_world_ends_far_away(place: tuple[int, int]):
    with pytest.raises(ConfigError, match="rows and columns end at 8388608"):
        position_of(*place, (0, 0))


def test_cells_in_view_are_row_by_row():
    cells = cells_in_view(-2, 5)
    assert cells.shape == (TOKENS_PER_FRAME, 2)
    assert cells[:2].tolist() == [[-2, 5], [-2, 6]] and cells[8].tolist() == [-1, 5] and cells[-1].tolist() == [5, 12]


def test_a_cell_has_the_same_angles_in_every_frame_that_shows_it():
    rope = WorldRotary(64)
    first, moved = (rope.tables(position_of(*place, (0, 1)) * TOKENS_PER_FRAME, 128) for place in ((3, 4), (2, 6)))
    for table, later in zip(first, moved, strict=True):
        assert table.shape == (128, 32) and table.dtype == torch.float32
        # Frame 0 of the first begins at (3, 4), frame 1 of the second at (2, 7): they share rows 3-9, columns 7-11.
        grid, later_grid = table[:64].view(8, 8, -1), later[64:].view(8, 8, -1)
        assert torch.equal(grid[:7, 3:], later_grid[1:, :5])
        assert not torch.allclose(grid[0, 0], later_grid[0, 0])


def test_a_key_is_most_alike_at_its_own_cell_within_512_cells():
    rope = WorldRotary(64)
    constant = torch.zeros(64, 64)
    constant[:, :32] = 1.0
    there = rotate(constant, *rope.tables(position_of(100, -50, (0, 0)) * TOKENS_PER_FRAME, 64))
    for place in ((100, -49), (101, -50), (101, -51), (100, 400), (-300, -50), (612, 462)):
        here = rotate(constant, *rope.tables(position_of(*place, (0, 0)) * TOKENS_PER_FRAME, 64))
        assert (here[0] @ there[0]) < 0.9 * (there[0] @ there[0])
    # Rotation keeps float32 angles exact enough far from the origin.
    far = [position_of(MAX_COORDINATE - 64, -MAX_COORDINATE + step, (0, 0)) * TOKENS_PER_FRAME for step in (64, 65)]
    near = [position_of(0, step, (0, 0)) * TOKENS_PER_FRAME for step in (0, 1)]
    scores = [
        rotate(constant, *rope.tables(a, 64))[0] @ rotate(constant, *rope.tables(b, 64))[0] for a, b in (far, near)
    ]
    assert torch.allclose(*scores, atol=1e-3)


@pytest.mark.parametrize(("first", "number"), [(32, 64), (0, 65), (64, 32)])
def test_parts_of_frames_are_refused(first: int, number: int):
    with pytest.raises(ShapeError, match="cut a frame of 64 tokens"):
        WorldRotary(64).tables(first, number)


def test_pairs_are_shared_by_two_axes():
    with pytest.raises(ConfigError, match="head_dim is 66"):
        WorldRotary(66)
