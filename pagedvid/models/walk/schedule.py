"""The order of work of a walk: chunk by chunk, every range at its place on the map.

    given frames    | 0 commit |
    every chunk     | 1 | 1 | 1 commit | 2 | 2 | 2 commit |

A commit pass sees its own chunk alone, so that what is stored of a chunk does not depend on what else is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from pagedvid.cache.window import Window
from pagedvid.engine.schedule import Advance, Range, Round, Schedule, check_plannable
from pagedvid.models.walk.rotary import position_of
from pagedvid.models.walk.spec import FRAMES_PER_CHUNK


def num_chunks_of(num_frames: int) -> int:
    """Chunks that hold at least these frames."""
    return -(-num_frames // FRAMES_PER_CHUNK)


def chunk_position(places_F2: np.ndarray, chunk: int) -> int:
    """`Range.position` of a chunk of a walk whose frames have these places. Raises ConfigError beyond the world."""
    (row, column), (next_row, next_column) = places_F2[
        chunk * FRAMES_PER_CHUNK : (chunk + 1) * FRAMES_PER_CHUNK
    ].tolist()
    return position_of(row, column, (next_row - row, next_column - column))


def walk_schedule(
    places_F2: np.ndarray, *, num_given: int = 0, first_frame: int = 0, levels: Sequence[float], window: Window
) -> Schedule:
    """The schedule of a walk through `places_F2`, int64 [whole chunks of frames, 2].

    `num_given`: chunks at its beginning that are given. `first_frame`: of the video; frames before it do not go out.
    `levels` fall from pure noise to clean, the last one is that of the commit pass. Raises ConfigError.
    """
    num_chunks = len(places_F2) // FRAMES_PER_CHUNK
    check_plannable(len(places_F2), num_chunks)
    positions = [chunk_position(places_F2, chunk) for chunk in range(num_chunks)]

    def rounds() -> Iterator[Round]:
        for chunk, position in enumerate(positions):
            frames = range(chunk * FRAMES_PER_CHUNK, (chunk + 1) * FRAMES_PER_CHUNK)
            for level, next_level in pairwise(levels) if chunk >= num_given else ():
                yield Round(
                    (Range(frames, level, position=position),),
                    (Advance(chunk, (0,), level, next_level),),
                    finished=(chunk,) if next_level == levels[-1] else (),
                )
            if chunk < num_given or chunk < num_chunks - 1:
                stored = Range(frames, levels[-1], visible=(), commits=True, position=position)
                goes_out = first_frame <= frames.start and chunk < num_given
                yield Round((stored,), finished=(chunk,) if goes_out else (), forgets=(chunk,))

    num_commits = max(num_given, num_chunks - 1)
    return Schedule(rounds, window, num_commits, max_range_frames=FRAMES_PER_CHUNK, first_frame=first_frame)
