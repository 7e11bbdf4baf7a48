"""HY-WorldPlay's schedule: a memory pass and four denoise steps per chunk; timesteps of both variants.

    chunk 0   step step step step
    chunk c   memory pass: the selected finished frames together, committed as one chunk, seeing nothing older
              step step step step, which read it; then it is dropped

A chunk's own keys and values are never stored. Timesteps run from 1000, pure noise, to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.schedule import Advance, Range, Round, Schedule, check_plannable
from pagedvid.errors import ConfigError
from pagedvid.models.worldplay.camera import Cameras
from pagedvid.models.worldplay.memory import BLOCK_FRAMES, MemoryPolicy, default_points, num_selected, select_frames

MAX_TIMESTEP = 1000.0
MEMORY_TIMESTEP = 14.0
"""Timestep that the network is given for finished frames: nearly clean. No noise is added to them."""
MEMORY, DENOISE = "memory", "cond"
"""The roles of ranges."""
WINDOW = Window(sink_chunks=0, recent_chunks=1, positions="window")
"""One memory with positions from 0, and the chunk directly after it."""
SHIFT_8B = 5.0
NUM_STEPS_8B = 4
TIMESTEPS_WAN = (1000.0, 960.0, 888.8889, 727.2728, 0.0)


def timesteps_8b(num_denoise_steps: int | None) -> tuple[float, ...]:
    """Evenly spaced, shifted towards noise: num_denoise_steps + 1 timesteps from 1000 to 0; None: 4 steps."""
    num_steps = num_denoise_steps or NUM_STEPS_8B
    even = (1 - step / num_steps for step in range(num_steps + 1))
    return tuple(MAX_TIMESTEP * SHIFT_8B * level / (1 + (SHIFT_8B - 1) * level) for level in even)


def timesteps_wan(num_denoise_steps: int | None) -> tuple[float, ...]:
    """The fixed ones of the distilled model. Raises ConfigError for another number of steps."""
    if num_denoise_steps not in (None, len(TIMESTEPS_WAN) - 1):
        raise ConfigError(
            f"num_denoise_steps is {num_denoise_steps}; hy-worldplay-5b was distilled to {len(TIMESTEPS_WAN) - 1} steps"
        )
    return TIMESTEPS_WAN


def rebuilt_memory(
    sizes: Sequence[int],
    memory_of: Callable[[int], tuple[int, ...]],
    timesteps: Sequence[float],
    cameras: Cameras,
) -> Schedule:
    """The schedule of a video whose chunk c remembers the frames `memory_of(c)`, `sizes[c]` of them; ranges carry their
    cameras as tags.

    A stream is admitted by the sizes alone. Which frames they are is decided when the chunk begins: comparing all views
    with all others in advance would take hours for an hour of video. It is therefore unknown which frames are never
    remembered again, so all latents are kept until the video ends.
    """

    def rounds() -> Iterator[Round]:
        num_passes = 0
        for chunk, size in enumerate(sizes):
            if size:
                memory = memory_of(chunk)
                yield Round(
                    (Range(memory, MEMORY_TIMESTEP, MEMORY, visible=(), commits=True, tag=cameras.select(memory)),)
                )
                num_passes += 1
            visible = (num_passes - 1,) if size else ()
            frames = tuple(range(BLOCK_FRAMES * chunk, BLOCK_FRAMES * (chunk + 1)))
            tag, is_last = cameras.select(frames), chunk == len(sizes) - 1
            for step, (level, next_level) in enumerate(pairwise(timesteps)):
                is_clean = step == len(timesteps) - 2
                yield Round(
                    (Range(frames, level, DENOISE, visible=visible, tag=tag),),
                    (Advance(chunk, (0,), level, next_level),),
                    finished=(chunk,) if is_clean else (),
                    drops=visible if is_clean else (),
                    forgets=tuple(range(len(sizes))) if is_clean and is_last else (),
                )

    stored = [size for size in sizes if size]
    commits = tuple((size, (number - 1,) if number else ()) for number, size in enumerate(stored))
    return Schedule(rounds, WINDOW, len(stored), max((BLOCK_FRAMES, *stored)), commits)


def remembering(
    policy: MemoryPolicy, num_frames: int, timesteps: Sequence[float], cameras: Cameras, points_N3: Tensor
) -> Schedule:
    """The schedule of at least `num_frames` frames along a trajectory. Raises ConfigError for too many."""

    def memory_of(chunk: int) -> tuple[int, ...]:
        return select_frames(policy, BLOCK_FRAMES * chunk, cameras.views_F44, points_N3)

    return rebuilt_memory(memory_sizes(policy, num_frames), memory_of, timesteps, cameras)


def schedule_without_trajectory(policy: MemoryPolicy, num_frames: int, timesteps: Sequence[float]) -> Schedule:
    """For a camera that does not move: how many frames are remembered does not depend on the trajectory.

    Raises ConfigError for too many frames.
    """
    sizes = memory_sizes(policy, num_frames)
    cameras = Cameras.fixed(BLOCK_FRAMES * len(sizes))
    return remembering(policy, num_frames, timesteps, cameras, default_points()[:1])


def memory_sizes(policy: MemoryPolicy, num_frames: int) -> list[int]:
    """Frames that each chunk of a video remembers. Raises ConfigError for more chunks than can be planned."""
    num_chunks = -(-num_frames // BLOCK_FRAMES)
    check_plannable(num_frames, num_chunks)
    return [num_selected(policy, BLOCK_FRAMES * chunk) for chunk in range(num_chunks)]
