"""The layers of the GPU benchmarks have the shapes of the models."""

from __future__ import annotations

from lib.layers import SHAPES
from pagedvid.rotary.axis_tables import follows_grid
from pagedvid.rotary.grid import RopeGrid


def test_the_rotary_embedding_has_the_grid_of_the_shape() -> None:
    assert {name: shape.chunk_tokens for name, shape in SHAPES.items()} == {
        "wan-1.3b": 3 * 1560,
        "wan-14b": 3 * 1560,
        "magi-1-4.5b": 6 * 2025,
        "hy-worldplay-8b": 4 * 1560,
        "tiny": 70,
    }
    shape = SHAPES["tiny"]
    assert shape.rope().grid == RopeGrid.split(5, 7, (6, 5, 5))
    assert follows_grid(shape.rope(), [(0, 70), (70, 70)])
