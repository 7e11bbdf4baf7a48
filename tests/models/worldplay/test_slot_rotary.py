"""Slots of frames, which are never cut, and the grid that the tables follow."""

from __future__ import annotations

import pytest

from pagedvid.errors import ShapeError
from pagedvid.rotary.axis_tables import follows_grid
from tests.models.worldplay.recordings import rope


@pytest.mark.parametrize("variant", ["hy8b", "wan5b"])
def test_the_tables_follow_their_grid(variant):
    tables = rope(variant)
    assert tables.grid.frame_tokens == 6 and tables.grid.width == 3
    assert follows_grid(tables, [(0, 24), (12, 6), (240, 18)])


@pytest.mark.parametrize("place", [(3, 6), (6, 9)])
def test_a_cut_frame_is_refused(place):
    with pytest.raises(ShapeError, match="cut a frame of 6 tokens"):
        rope("hy8b").tables(*place)
