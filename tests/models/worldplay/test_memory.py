"""Which frames are remembered."""

from __future__ import annotations

import math

import pytest
import torch

from pagedvid.models.worldplay.memory import (
    HALF_WIDTH_DEGREES,
    RADIUS,
    MemoryPolicy,
    default_points,
    select_frames,
    view_overlap,
)
from tests.models.worldplay.recordings import NUM_CHUNKS, VARIANTS, inputs, memory_frames, policy

POINTS = default_points()[:4000]


@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_recorded_selection(variant, chunk):
    x = inputs(variant)
    chosen = select_frames(policy(variant), 4 * chunk, x["viewmats"][0], x["points_local"])
    assert chosen == memory_frames(variant, chunk)


def turned(degrees: float, depth: float = 0.0) -> torch.Tensor:
    """World to camera: a camera that looks `degrees` to the right of +z and stands `depth` further along z."""
    angle = math.radians(degrees)
    rotation = torch.tensor(
        [[math.cos(angle), 0, -math.sin(angle)], [0, 1, 0], [math.sin(angle), 0, math.cos(angle)]], dtype=torch.float64
    )
    view = torch.eye(4, dtype=torch.float64)
    view[:3, :3] = rotation
    view[:3, 3] = -rotation @ torch.tensor([0.0, 0.0, depth], dtype=torch.float64)
    return view


def test_overlap_of_turned_cameras():
    assert view_overlap(turned(0), turned(0), POINTS) == 1.0
    assert view_overlap(turned(0), turned(2 * HALF_WIDTH_DEGREES + 1), POINTS) == 0.0
    half = view_overlap(turned(0), turned(HALF_WIDTH_DEGREES), POINTS)
    assert 0.4 < half < 0.6
    assert view_overlap(turned(170), turned(-170), POINTS) == pytest.approx(view_overlap(turned(0), turned(20), POINTS))


def test_overlap_ends_where_the_ball_ends():
    assert view_overlap(turned(0), turned(0, depth=2 * RADIUS), POINTS) == 0.0
    assert 0.0 < view_overlap(turned(0), turned(0, depth=3.0), POINTS) < 1.0


def test_the_block_that_looks_the_same_way_is_chosen():
    """16 old frames in four directions, 12 recent ones away from them; the chunk looks as block 8 to 11 did."""
    directions = [0] * 4 + [90] * 4 + [45] * 4 + [135] * 4 + [180] * 12 + [45] * 4
    views = torch.stack([turned(degrees) for degrees in directions])
    free = MemoryPolicy(16, 12, protects_first_chunk=False, keeps_all_until=15)
    assert select_frames(free, 28, views, POINTS) == (8, 9, 10, 11, *range(16, 28))
    protected = MemoryPolicy(20, 12, protects_first_chunk=True, keeps_all_until=20)
    assert select_frames(protected, 28, views, POINTS) == (0, 1, 2, 3, 8, 9, 10, 11, *range(16, 28))


def test_the_default_points_fill_the_ball():
    points = default_points()
    assert float(points.norm(dim=1).max()) <= RADIUS
    assert float((points.norm(dim=1) < RADIUS / 2).double().mean()) == pytest.approx(1 / 8, abs=0.01)
    assert points.mean(0).abs().max() < 0.1
