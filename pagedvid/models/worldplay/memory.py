"""Which finished frames a chunk remembers: the newest ones and those whose view overlaps most with the chunk's.

The overlap of two cameras is counted on points in a ball around the first: the share of the points seen by camera a
that camera b sees too. Frames are taken in blocks of four, at multiples of four.

Axes: F frames, N points, n of them in a camera's view, P pairs of cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BLOCK_FRAMES = 4
RADIUS = 8.0
HALF_WIDTH_DEGREES = 30.0
HALF_HEIGHT_DEGREES = 17.5
NUM_POINTS = 50_000
PAIRS_AT_ONCE = 32
"""Pairs of cameras that are compared together; their points fit in a processor's cache."""


@dataclass(frozen=True)
class MemoryPolicy:
    """How many frames are remembered, and which of them always."""

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
    """Frames, ascending, that the chunk starting at `first_frame` remembers; `views` must reach to the chunk's end.

    A chunk late in a video is compared with every block before it, 8 pairs of cameras each.
    """
    return _selected(
        policy, first_frame, lambda blocks: _most_alike_first(blocks, first_frame, views_F44.double(), points_N3)
    )


def num_selected(policy: MemoryPolicy, first_frame: int) -> int:
    """How many frames `select_frames` gives; this does not depend on the cameras."""
    return len(_selected(policy, first_frame, lambda blocks: blocks))


def _selected(policy: MemoryPolicy, first_frame: int, ranked: Callable[[range], Sequence[int]]) -> tuple[int, ...]:
    """`ranked` puts old blocks, given by their first frames, into the order in which they are taken."""
    if first_frame <= policy.keeps_all_until:
        return tuple(range(first_frame))
    first_recent = first_frame - policy.recent_frames
    chosen = list(range(BLOCK_FRAMES)) if policy.protects_first_chunk else []
    for block in ranked(range(len(chosen), first_recent, BLOCK_FRAMES)):
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
    relative = view_b.double() @ torch.linalg.inv(view_a.double())
    return float(_shares_seen(relative[None], points_in_view(points_N3)))


def points_in_view(points_N3: Tensor) -> Tensor:
    """Those of the points, relative to a camera, that it sees: float64 [n, 3], the same for every camera."""
    points = points_N3.double()
    return points[_is_inside(points, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))]


def _most_alike_first(blocks: range, first_frame: int, views_F44: Tensor, points_N3: Tensor) -> list[int]:
    """Blocks by the mean overlap of two of their frames with the chunk's four; equal ones in their order."""
    if not blocks:
        return []
    compared = [frame for block in blocks for frame in (block, block + BLOCK_FRAMES // 2)]
    from_chunk = torch.linalg.inv(views_F44[first_frame : first_frame + BLOCK_FRAMES])
    relative = views_F44[compared].view(len(blocks), 1, 2, 4, 4) @ from_chunk[:, None]  # [blocks, 4, 2, 4, 4]
    shares = _shares_seen(relative.flatten(0, 2), points_in_view(points_N3)).view(len(blocks), -1)
    distance = [1.0 - sum(overlaps) / len(overlaps) for overlaps in shares.tolist()]
    return [blocks[place] for place in sorted(range(len(blocks)), key=lambda place: distance[place])]


def _shares_seen(relative_P44: Tensor, seen_by_a_n3: Tensor) -> Tensor:
    """Shares [P] of camera a's points that camera b sees, for pairs of cameras; `relative` leads from a to b."""
    rotation, translation = relative_P44[:, :3, :3], relative_P44[:, :3, 3:]
    shift = (rotation.mT @ translation).squeeze(2)  # the centre of b is at -R^T t
    shares = torch.zeros(len(relative_P44), dtype=torch.float64)
    # Further apart than two radii, no point is near both.
    for pairs in (shift.norm(dim=1) <= 2 * RADIUS).nonzero().squeeze(1).split(PAIRS_AT_ONCE):
        offset = seen_by_a_n3 + shift[pairs, None]
        in_b = _is_inside(offset, rotation[pairs, 2, None]) & (offset.norm(dim=-1) < RADIUS)
        shares[pairs] = in_b.sum(dim=1).double() / max(1, len(seen_by_a_n3))
    return shares


def _is_inside(offset_N3: Tensor, forward_3: Tensor) -> Tensor:
    """Whether offsets [..., 3] from a camera that looks `forward` [..., 3] are in its view."""
    yaw = _yaw(offset_N3) - _yaw(forward_3)
    pitch = _pitch(offset_N3) - _pitch(forward_3)
    return (_wrap(yaw).abs() < HALF_WIDTH_DEGREES) & (_wrap(pitch).abs() < HALF_HEIGHT_DEGREES)


def _yaw(direction_N3: Tensor) -> Tensor:
    return _degrees(direction_N3[..., 0], direction_N3[..., 2])


def _pitch(direction_N3: Tensor) -> Tensor:
    return _degrees(direction_N3[..., 1], torch.hypot(direction_N3[..., 0], direction_N3[..., 2]))


def _degrees(y: Tensor, x: Tensor) -> Tensor:
    return torch.rad2deg(torch.atan2(y, x))


def _wrap(degrees: Tensor) -> Tensor:
    """Into [-180, 180)."""
    return torch.remainder(degrees + 180.0, 360.0) - 180.0
