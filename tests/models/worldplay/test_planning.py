"""Planning a video costs nothing but its length, and gives what comparing all views beforehand gives.

The oracle is written in plain numpy from the rules in words: a memory is the newest 12 frames, the first 4 for the 8B,
and the old blocks of 4 whose views overlap most with the chunk's, until 20 or 16 frames are full; with 20 or 15
finished frames or fewer it is all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pagedvid.cache.window import Window
from pagedvid.engine.schedule import MAX_PLANNED_CHUNKS, planned
from pagedvid.errors import ConfigError
from pagedvid.models.worldplay import schedule as schedule_module
from pagedvid.models.worldplay.camera import Cameras
from pagedvid.models.worldplay.memory import MEMORY_8B, MEMORY_WAN, MemoryPolicy, default_points, num_selected
from pagedvid.models.worldplay.schedule import remembering, schedule_without_trajectory
from tests.models.specs import spec_of

POINTS = default_points()[:2000]
TIMESTEPS = (1000.0, 500.0, 0.0)
NUM_FRAMES = 88


@dataclass(frozen=True)
class Walk:
    """A random walk of so many units and radians a frame."""

    speed: float
    turning: float

    def cameras(self, num_frames: int = NUM_FRAMES) -> Cameras:
        draw = np.random.default_rng(3)
        yaw = np.cumsum(draw.normal(size=num_frames)) * self.turning
        places = np.cumsum(draw.normal(size=(num_frames, 3)), axis=0) * self.speed
        views = np.tile(np.eye(4), (num_frames, 1, 1))
        views[:, 0, 0], views[:, 0, 2], views[:, 2, 0], views[:, 2, 2] = (
            np.cos(yaw),
            -np.sin(yaw),
            np.sin(yaw),
            np.cos(yaw),
        )
        views[:, :3, 3] = -np.einsum("fij,fj->fi", views[:, :3, :3], places)
        return Cameras.of(torch.from_numpy(views), torch.eye(3).repeat(num_frames, 1, 1))


WALKS = {"standing": Walk(0.0, 0.0), "turning": Walk(0.0, 0.3), "slow": Walk(0.1, 0.1), "far": Walk(4.0, 1.0)}


def seen(points: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Which of the points, relative to a camera's centre, a camera of that rotation sees."""
    forward = view[2, :3]
    yaw = np.degrees(np.arctan2(points[:, 0], points[:, 2]) - np.arctan2(forward[0], forward[2]))
    pitch = np.degrees(np.arctan2(points[:, 1], np.hypot(points[:, 0], points[:, 2])))
    pitch -= np.degrees(np.arctan2(forward[1], np.hypot(forward[0], forward[2])))
    return (np.abs((yaw + 180) % 360 - 180) < 30) & (np.abs((pitch + 180) % 360 - 180) < 17.5)


def overlap(view_a: np.ndarray, view_b: np.ndarray) -> float:
    points = POINTS.double().numpy()
    points = points[seen(points, np.eye(4))]
    relative = view_b @ np.linalg.inv(view_a)
    moved = points + relative[:3, :3].T @ relative[:3, 3]
    return float((seen(moved, relative) & (np.linalg.norm(moved, axis=1) < 8)).mean())


def memory_by_words(policy: MemoryPolicy, first: int, views: np.ndarray) -> set[int]:
    full, always, keeps_all = (20, {0, 1, 2, 3}, 20) if policy is MEMORY_8B else (16, set(), 15)
    if first <= keeps_all:
        return set(range(first))
    memory = set(range(first - 12, first)) | always
    old = [block for block in range(0, first - 12, 4) if block not in always]
    mean = {
        block: np.mean([overlap(views[first + i], views[block + j]) for i in range(4) for j in (0, 2)]) for block in old
    }
    for block in sorted(old, key=lambda block: (-mean[block], block)):
        if len(memory) < full:
            memory |= set(range(block, block + 4))
    return memory


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("policy", [MEMORY_8B, MEMORY_WAN], ids=["8b", "5b"])
def test_the_schedule_is_the_one_of_all_views_compared_beforehand(policy, walk):
    cameras = WALKS[walk].cameras()
    views = cameras.views_F44.numpy()
    schedule = remembering(policy, NUM_FRAMES, TIMESTEPS, cameras, POINTS)
    memories = [set(r.ranges[0].frames) for r in schedule.rounds() if r.ranges[0].commits]
    assert memories == [memory_by_words(policy, first, views) for first in range(4, NUM_FRAMES, 4)]
    read_off = planned(schedule.rounds, schedule.window)
    for field in ("window", "num_commits", "max_range_frames", "commits"):
        assert getattr(schedule, field) == getattr(read_off, field)


@pytest.mark.parametrize("policy", [MEMORY_8B, MEMORY_WAN], ids=["8b", "5b"])
def test_the_plan_without_a_trajectory_promises_what_any_trajectory_takes(policy):
    for num_frames in (1, 4, 5, 16, 17, 20, 21, 24, 25, 32, 63, NUM_FRAMES):
        standing = schedule_without_trajectory(policy, num_frames, TIMESTEPS)
        whole = -(-num_frames // 4) * 4
        walked = remembering(policy, num_frames, TIMESTEPS, WALKS["far"].cameras(whole), POINTS)
        assert (standing.commits, standing.max_range_frames) == (walked.commits, walked.max_range_frames)
        read_off = planned(standing.rounds, standing.window)
        assert (read_off.commits, read_off.num_commits) == (standing.commits, standing.num_commits)


def test_the_number_of_frames_follows_from_the_policy_whatever_it_is():
    for recent in (4, 8, 12):
        for memory in range(recent, recent + 17):
            for protects in (False, True):
                policy = MemoryPolicy(memory, recent, protects, keeps_all_until=recent + 4)
                for first in range(0, 60, 4):
                    num_old_blocks = max(0, first - recent) // 4
                    wanted = -(-max(0, memory - recent) // 4)
                    blocks = min(num_old_blocks, max(wanted, int(protects)))
                    expected = first if first <= recent + 4 else 4 * blocks + recent
                    assert num_selected(policy, first) == expected, (policy, first)


@pytest.mark.parametrize("name", ["hy-worldplay-8b", "hy-worldplay-5b"])
def test_hours_are_planned_without_comparing_a_view(name, monkeypatch):
    """40,000 latent frames are nearly two hours; all views against all would be 400 million pairs."""
    monkeypatch.setattr(schedule_module, "select_frames", None)
    schedule = spec_of(name).schedule(40_000, None, Window(1, 4))
    assert schedule.num_commits == len(schedule.commits) == 9_999
    assert schedule.commits[-1] == (schedule.max_range_frames, (9_997,))
    cameras = WALKS["slow"].cameras(400)
    assert remembering(MEMORY_WAN, 400, TIMESTEPS, cameras, POINTS).num_commits == 99


def test_a_chunk_s_views_are_compared_when_its_turn_comes(monkeypatch):
    asked = []

    def watched(policy, first, views, points):
        asked.append(first)
        return tuple(range(min(first, 16)))

    monkeypatch.setattr(schedule_module, "select_frames", watched)
    rounds = remembering(MEMORY_WAN, 32, TIMESTEPS, WALKS["slow"].cameras(32), POINTS).rounds()
    for chunk in range(1, 4):
        next(r for r in rounds if r.ranges[0].commits)
        assert asked == [4 * number for number in range(1, chunk + 1)]


@pytest.mark.parametrize("name", ["hy-worldplay-8b", "hy-worldplay-5b", "magi-1-4.5b", "magi-1-24b-distill"])
@pytest.mark.parametrize("num_frames", [10**12, 2**63 - 1])
def test_a_video_beyond_what_is_planned_is_refused_at_once(name, num_frames):
    message = rf"a video of {num_frames} latent frames has \d+ chunks; at most {MAX_PLANNED_CHUNKS} can be planned"
    with pytest.raises(ConfigError, match=message):
        spec_of(name).schedule(num_frames, None, Window(1, 4))


@pytest.mark.parametrize(
    "name",
    ["demo", "self-forcing", "causvid", "krea-14b", "longlive-2-5b", "skyreels-v2-1.3b", "skyreels-v2-14b"],
)
def test_models_that_go_chunk_by_chunk_plan_any_length(name):
    schedule = spec_of(name).schedule(2**63 - 1, None, Window(1, 4))
    first = next(schedule.rounds())
    assert first.ranges[0].frames[0] == 0 and schedule.num_commits > 10**17 and schedule.commits is None
