"""Which finished frames a chunk remembers: the newest ones and those whose view overlaps most with the chunk's.

The overlap of two cameras is counted on points in a ball around the first: the share of the points seen by camera a
that camera b sees too. Frames are taken in blocks of four, at multiples of four.

Axes: F frames, N points, n of them in a camera's view.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BLOCK_FRAMES = 4
RADIUS = 8.0
HALF_WIDTH_DEGREES = 30.0
HALF_HEIGHT_DEGREES = 17.5
NUM_POINTS = 50_000


@dataclass(frozen=True)
class MemoryPolicy:
    """How many frames are remembered, and which always."""

    memory_frames: int
    """Most frames that are selected."""
    recent_frames: int
    """Newest ones, always."""
    protects_first_chunk: bool
    """Whether frames 0 to 3 are always among them."""
    keeps_all_until: int
    """Up to this many finished frames, all are remembered."""


MEMORY_8B = MemoryPolicy(20, 12, protects_first_chunk=True, keeps_all_until=20)
MEMORY_WAN = MemoryPolicy(16, 12, protects_first_chunk=False, keeps_all_until=15)


def select_frames(policy: MemoryPolicy, first_frame: int, views_F44: Tensor, points_N3: Tensor) -> tuple[int, ...]:
    """Frames, ascending, that the chunk starting at `first_frame` remembers; `views` must reach to the chunk's end."""
    if first_frame <= policy.keeps_all_until:
        return tuple(range(first_frame))
    first_recent = first_frame - policy.recent_frames
    chosen = list(range(BLOCK_FRAMES)) if policy.protects_first_chunk else []
    candidates = range(len(chosen), first_recent, BLOCK_FRAMES)
    views, seen = views_F44.double(), points_in_view(points_N3)
    distance = {block: _distance(first_frame, block, views, seen) for block in candidates}
    for block in sorted(candidates, key=lambda block: distance[block]):
        if len(chosen) + policy.recent_frames >= policy.memory_frames:
            break
        chosen += range(block, block + BLOCK_FRAMES)
    return tuple(sorted({*chosen, *range(first_recent, first_frame)}))


@lru_cache(maxsize=1)
def default_points() -> Tensor:
    """NUM_POINTS points, uniform in the ball of radius RADIUS, float64 [N, 3]; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(NUM_POINTS, 3, generator=generator, dtype=torch.float64)
    distance = RADIUS * torch.rand(NUM_POINTS, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
    return direction / direction.norm(dim=1, keepdim=True) * distance


def view_overlap(view_a: Tensor, view_b: Tensor, points_N3: Tensor) -> float:
    """Share of the points in camera a's view that camera b sees too. `points` are relative to camera a."""
    return _share_seen(view_a.double(), view_b.double(), points_in_view(points_N3))


def points_in_view(points_N3: Tensor) -> Tensor:
    """Those of the points, relative to a camera, that it sees: float64 [n, 3], the same for every camera."""
    points = points_N3.double()
    return points[_is_inside(points, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))]


def _share_seen(view_a: Tensor, view_b: Tensor, seen_by_a_n3: Tensor) -> float:
    relative = view_b @ torch.linalg.inv(view_a)
    rotation, translation = relative[:3, :3], relative[:3, 3]
    offset = seen_by_a_n3 + rotation.T @ translation  # from the centre -R^T t
    in_b = _is_inside(offset, rotation[2]) & (offset.norm(dim=1) < RADIUS)
    return float(in_b.sum()) / max(1, len(in_b))


def _distance(first_frame: int, block: int, views_F44: Tensor, seen_n3: Tensor) -> float:
    overlaps = [
        _share_seen(views_F44[query], views_F44[frame], seen_n3)
        for query in range(first_frame, first_frame + BLOCK_FRAMES)
        for frame in (block, block + BLOCK_FRAMES // 2)
    ]
    return 1.0 - sum(overlaps) / len(overlaps)


def _is_inside(offset_N3: Tensor, forward: Tensor) -> Tensor:
    yaw = _degrees(offset_N3[:, 0], offset_N3[:, 2]) - _degrees(forward[0], forward[2])
    pitch = _pitch(offset_N3) - _pitch(forward[None])
    return (_wrap(yaw).abs() < HALF_WIDTH_DEGREES) & (_wrap(pitch).abs() < HALF_HEIGHT_DEGREES)


def _pitch(direction_N3: Tensor) -> Tensor:
    return _degrees(direction_N3[:, 1], torch.hypot(direction_N3[:, 0], direction_N3[:, 2]))


def _degrees(y: Tensor, x: Tensor) -> Tensor:
    return torch.rad2deg(torch.atan2(y, x))


def _wrap(degrees: Tensor) -> Tensor:
    """Into [-180, 180)."""
    return torch.remainder(degrees + 180.0, 360.0) - 180.0
