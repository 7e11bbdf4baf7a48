"""Slots of frames, which are never cut."""

from __future__ import annotations

import pytest

from pagedvid.errors import ShapeError
from tests.models.worldplay.recordings import rope


@pytest.mark.parametrize("place", [(3, 6), (6, 9)])
def test_a_cut_frame_is_refused(place):
    with pytest.raises(ShapeError, match="cut a frame of 6 tokens"):
        rope("hy8b").tables(*place)
