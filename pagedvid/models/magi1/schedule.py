"""MAGI-1's schedule: several chunks in flight, each at its own time, each seeing its own part of the past.

A chunk's steps are divided into window_size stages. In every stage the chunks in flight move up by one: the first one
becomes clean at its end, a new one enters as pure noise. In the first round of the next stage the chunk that became
clean runs once more, first in the packed forward, nearly clean and without a prompt: that pass makes the keys and
values that are stored, and the chunks in flight see them at once.

    stage 3   | 0 | 1 | 2 | 3 |                  times   late ......... early
    stage 4   | 0 commit | 1 | 2 | 3 | 4 |       first round; then | 1 | 2 | 3 | 4 |, which see chunk 0 in its pages
    stage 5   | 1 commit | 2 | 3 | 4 | 5 |       ...

A chunk sees itself and the chunks before it, as many as `noise2clean_kvrange` says for its quarter, wherever their keys
are: in pages, or in this round. Stored chunks that no later round sees are dropped at once.

Roles: "cond" own prompt; "clean" null text, making keys and values for the prompt's forward; "alone" own prompt,
seeing nothing but itself. With cfg_number 3 a step is three rounds: that of the prompt, which stores nothing; "null",
null text over the same history, which alone is stored; and "uncond", null text without any history, every chunk by
itself at the video's start. Noise levels are times: 0 is noise, 1 is clean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pagedvid.cache.window import Window
from pagedvid.engine.schedule import (
    MAX_PLANNED_CHUNKS,
    Advance,
    Hold,
    Range,
    Round,
    Schedule,
    check_plannable,
    planned,
    with_endings,
)
from pagedvid.models.common.in_flight import chunks_in_flight
from pagedvid.models.magi1.spec import SamplingConfig
from pagedvid.models.magi1.times import check_steps, step_length, times


@dataclass(frozen=True)
class MagiSchedule:
    """Makes the rounds of one video."""

    sampling: SamplingConfig
    chunk_frames: int
    num_steps: int
    num_chunks: int
    num_prefix_chunks: int = 0
    """Whole chunks that are given."""

    def rounds(self) -> Iterator[Round]:
        """All of them, in which nothing is dropped yet."""
        yield from self._prefix_rounds()
        yield from self._denoise_rounds()

    def _prefix_rounds(self) -> Iterator[Round]:
        """Chunk by chunk, so that what a chunk sees of those before it is already stored. With guidance it is the pass
        of the history's forward, as for chunks that became clean."""
        sampling, role = self.sampling, "null" if self.sampling.cfg_number == 3 else "clean"
        for chunk in range(self.num_prefix_chunks):
            first_seen = max(0, chunk + 1 - sampling.clean_chunk_kvrange)
            yield Round((self._range(chunk, sampling.clean_t, role, 0, commits=True, first_seen=first_seen),))

    def _denoise_rounds(self) -> Iterator[Round]:
        per_stage = self.num_steps // self.sampling.window_size
        for moment in chunks_in_flight(self.num_prefix_chunks, self.num_chunks, self.num_steps, lag=per_stage):
            index = min(moment.steps.values()) % per_stage
            yield from self._step(moment.steps, index, has_clean_pass=moment.clean is not None)

    def _step(self, steps: Mapping[int, int], index: int, has_clean_pass: bool) -> Iterator[Round]:
        """One step of the chunks in flight. `steps`: the number of each one's own step, in order."""
        if self.sampling.cfg_number == 3:
            prompted = self._forward(steps, index, has_clean_pass, "cond", "clean", stores=False)
            null = self._forward(steps, index, has_clean_pass, "null", "null", stores=True)
            for ranges in (prompted, null):
                carriers = self._carriers(ranges)
                yield Round(tuple(ranges), holds=tuple(Hold(chunk, carriers[chunk][0]) for chunk in steps))
            yield self._advancing(
                [self._alone(chunk, step, "uncond", 0, index) for chunk, step in steps.items()], steps
            )
            return
        ranges = self._forward(steps, index, has_clean_pass, "cond", "clean", stores=True)
        first, stop = min(steps), (max(steps) + 1) * self.chunk_frames
        if self._times[steps[first]] > self.sampling.distill_nearly_clean_chunk_threshold:
            ranges.append(self._alone(first, steps[first], "alone", stop, index))
        yield self._advancing(ranges, steps)

    def _advancing(self, ranges: Sequence[Range], steps: Mapping[int, int]) -> Round:
        """The round after which every chunk in flight advances."""
        levels, first, carriers = self._times, min(steps), self._carriers(ranges)
        return Round(
            tuple(ranges),
            tuple(
                Advance(chunk, tuple(carriers[chunk]), levels[step], levels[step + 1]) for chunk, step in steps.items()
            ),
            finished=(first,) if steps[first] == self.num_steps - 1 else (),
        )

    def _forward(
        self, steps: Mapping[int, int], index: int, has_clean_pass: bool, role: str, clean: str, stores: bool
    ) -> list[Range]:
        """The chunks in flight, after the clean pass of the chunk before them if there is one."""
        sampling, ranges = self.sampling, []
        slice_point = min(steps) - has_clean_pass
        if has_clean_pass:
            first_seen = max(0, slice_point + 1 - sampling.clean_chunk_kvrange)
            ranges.append(
                self._range(slice_point, sampling.clean_t, clean, index, commits=stores, first_seen=first_seen)
            )
        for chunk, step in steps.items():
            first_seen = max(0, chunk + 1 - sampling.noise2clean_kvrange[step // (self.num_steps // 4)])
            level, sees = self._times[step], range(max(first_seen, slice_point) - slice_point, chunk - slice_point)
            ranges.append(
                self._range(chunk, level, role, index, first_seen=first_seen, slice_point=slice_point, sees=sees)
            )
        return ranges

    def _range(
        self,
        chunk: int,
        level: float,
        role: str,
        index: int,
        *,
        first_seen: int,
        slice_point: int | None = None,
        sees: Sequence[int] = (),
        commits: bool = False,
    ) -> Range:
        """One chunk that sees the chunks from `first_seen` on: in pages those before `slice_point`."""
        return Range(
            self._frames(chunk),
            level,
            role,
            visible=tuple(range(first_seen, chunk if slice_point is None else slice_point)),
            sees=tuple(sees),
            commits=commits,
            position=None if commits else chunk * self.chunk_frames,
            tag=self._tag(index),
        )

    def _alone(self, chunk: int, step: int, role: str, position: int, index: int) -> Range:
        """One chunk that sees nothing else."""
        return Range(self._frames(chunk), self._times[step], role, visible=(), position=position, tag=self._tag(index))

    def _carriers(self, ranges: Sequence[Range]) -> Mapping[int, list[int]]:
        """The ranges that carry a chunk, by chunk."""
        carriers: defaultdict[int, list[int]] = defaultdict(list)
        for place, part in enumerate(ranges):
            carriers[part.frames[0] // self.chunk_frames].append(place)
        return carriers

    def _frames(self, chunk: int) -> range:
        return range(chunk * self.chunk_frames, (chunk + 1) * self.chunk_frames)

    @property
    def _times(self) -> tuple[float, ...]:
        return times(self.num_steps, self.sampling.shortcut_mode)

    def _tag(self, index: int) -> float | None:
        """What a distilled network is told of the length of its step."""
        return step_length(self.num_steps, index, self.sampling.shortcut_mode) if self.sampling.distill else None


def magi_schedule(
    sampling: SamplingConfig, chunk_frames: int, num_steps: int | None, num_frames: int, num_prefix_frames: int = 0
) -> Schedule:
    """The schedule of a video of `num_frames` latent frames after `num_prefix_frames` given ones.

    `num_steps`: denoise steps of a chunk; None: as many as `sampling` says.

    Raises ConfigError for steps that cannot be dealt out, and for a video of too many chunks.
    """
    num_steps = sampling.num_steps if num_steps is None else num_steps
    check_steps(num_steps, sampling)
    num_chunks = -(-(num_prefix_frames + num_frames) // chunk_frames)
    check_plannable(num_frames, num_chunks)
    plan = MagiSchedule(sampling, chunk_frames, num_steps, num_chunks, num_prefix_frames // chunk_frames)
    window = Window(sink_chunks=0, recent_chunks=MAX_PLANNED_CHUNKS)  # rounds drop what no later one sees
    return planned(with_endings(plan.rounds, chunk_frames, window), window, first_frame=num_prefix_frames)
