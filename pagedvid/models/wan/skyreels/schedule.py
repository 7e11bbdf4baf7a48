"""SkyReels-V2's order of work: one block after the other, or several in flight (`ar_step`).

With `ar_step` a block begins that many steps after the one before it, as in the published program
(`generate_timestep_matrix`): early blocks are nearly clean, late ones nearly noise, and each sees itself and all before
it as they are at the time.

    3 steps, ar_step 1     round   1   | 0 |                            noise levels   low ......... high
                                   2   | 0 | 1 |
                                   3   | 0 | 1 | 2 |
                                   4   | 0 commit | 1 | 2 | 3 |         block 0 is clean, and is seen like this
                                   5   | 1 commit | 2 | 3 | 4 |         block 0 is seen in its pages

The published program carries finished blocks through every forward, at timestep 0; here they pass once. Its window ends
with the newest block that has begun (`valid_interval`), and so does this one, sinks apart: an old block leaves when a
new one begins. All branches of a video run in the same rounds, each with ranges of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Advance, Range, Round, Schedule, check_plannable, planned, with_endings
from pagedvid.errors import ConfigError
from pagedvid.models.common.chunk_by_chunk import chunk_by_chunk
from pagedvid.models.common.in_flight import chunks_in_flight
from pagedvid.models.wan.skyreels.spec import SkyReelsSettings


def skyreels_schedule(
    settings: SkyReelsSettings,
    geometry: ModelGeometry,
    num_frames: int,
    num_denoise_steps: int | None,
    window: Window,
    num_prefix_chunks: int = 0,
) -> Schedule:
    """The rounds after the given blocks, over the settings' window or else the configured one. `num_denoise_steps`:
    None: the settings' own number.

    Raises ConfigError, also for an `ar_step` with which too many blocks would be in flight for the window.
    """
    levels = settings.noise_levels(settings.num_denoise_steps if num_denoise_steps is None else num_denoise_steps)
    kept, level = settings.window(window), settings.prefix_level
    if settings.ar_step == 0:
        return chunk_by_chunk(geometry, num_frames, levels, kept, num_prefix_chunks, level)
    size = geometry.frames_per_chunk
    num_blocks = num_prefix_chunks - (-num_frames // size)
    check_plannable(num_frames, num_blocks)
    _check_ar_step(settings.ar_step, len(levels) - 1, kept, num_blocks, size)
    blocks = BlocksInFlight(geometry, levels, settings.ar_step, kept, num_blocks, num_prefix_chunks, level)
    return planned(with_endings(blocks.rounds, size, kept), kept, first_frame=num_prefix_chunks * size)


@dataclass(frozen=True)
class BlocksInFlight:
    """Makes the rounds of one video with several blocks in flight; nothing is dropped in them yet."""

    geometry: ModelGeometry
    levels: Sequence[float]
    """Noise levels, falling from pure noise to clean; the last one is that of the commit pass."""
    ar_step: int
    window: Window
    num_blocks: int
    num_prefix_blocks: int = 0
    prefix_level: float = 0.0
    """The noise level of given blocks."""

    def rounds(self) -> Iterator[Round]:
        """Given blocks one by one, then those in flight."""
        for block in range(self.num_prefix_blocks):
            yield Round(self._ranges({block: self.prefix_level}, stored=block))
        num_steps = len(self.levels) - 1
        lag = min(self.ar_step, num_steps)
        for moment in chunks_in_flight(self.num_prefix_blocks, self.num_blocks, num_steps, lag):
            levels = {} if moment.clean is None else {moment.clean: self.levels[-1]}
            levels |= {block: self.levels[step] for block, step in moment.steps.items()}
            oldest = min(moment.steps)
            yield Round(
                self._ranges(levels, stored=moment.clean),
                self._advances(moment.steps, num_blocks=len(levels)),
                finished=(oldest,) if moment.steps[oldest] == num_steps - 1 else (),
            )

    def _ranges(self, levels: Mapping[int, float], stored: int | None) -> tuple[Range, ...]:
        """All blocks of a round, oldest first, for every branch. `levels`: the noise level of each. `stored`: the one
        that is stored."""
        size, visible = self.geometry.frames_per_chunk, self._visible(min(levels), max(levels))
        ranges: list[Range] = []
        for branch in self.geometry.branches:
            first = len(ranges)
            for block, level in levels.items():
                frames, sees = range(block * size, (block + 1) * size), tuple(range(first, len(ranges)))
                ranges.append(Range(frames, level, branch, branch, visible, sees, commits=block == stored))
        return tuple(ranges)

    def _visible(self, stop: int, newest: int) -> tuple[int, ...]:
        """The blocks before `stop` that are in the window when `newest` is the newest one that has begun."""
        num_sinks, first_recent = self.window.sink_chunks, newest - self.window.recent_chunks
        return (*range(min(num_sinks, stop)), *range(max(num_sinks, first_recent), stop))

    def _advances(self, steps: Mapping[int, int], num_blocks: int) -> tuple[Advance, ...]:
        """One step of every block in flight; these are the last of the `num_blocks` ranges of each branch."""
        starts = range(0, num_blocks * len(self.geometry.branches), num_blocks)
        first = num_blocks - len(steps)
        return tuple(
            Advance(block, tuple(start + place for start in starts), self.levels[step], self.levels[step + 1])
            for place, (block, step) in enumerate(steps.items(), first)
        )


def _check_ar_step(ar_step: int, num_steps: int, window: Window, num_blocks: int, block_frames: int) -> None:
    """Raises ConfigError where a block that becomes clean would leave the window before the others see it so."""
    num_later, room = num_steps // ar_step, window.recent_chunks
    longest = window.max_chunks + 1
    if num_later > room and num_blocks > longest:
        raise ConfigError(
            f"ar_step is {ar_step}; with {num_steps} denoise steps {num_later} later blocks have begun when one is "
            f"clean, and the window of {longest * block_frames} latent frames has room for {room}. Set it to "
            f"{num_steps // (room + 1) + 1} or more, use fewer denoise steps, or make no video of more than "
            f"{longest * block_frames} latent frames (given ones count)"
        )
