"""Which chunks a stream keeps, as integers: its window, and the commits that are known in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagedvid.arguments import one_of, whole_number, whole_numbers
from pagedvid.errors import ConfigError


@dataclass(frozen=True)
class Window:
    """Which committed chunks a stream keeps. Neither count includes the chunk being denoised.

    `positions` says where rotary embedding places the tokens: "absolute" counts from the video's start, "window"
    re-indexes the kept chunks from 0, so that no position exceeds those the model was trained on, and with "given"
    every range says where it is and its chunk stays there, such as a place in a world.
    """

    sink_chunks: int = 1
    recent_chunks: int = 4
    positions: str = "absolute"

    def __post_init__(self) -> None:
        for name, minimum in (("sink_chunks", 0), ("recent_chunks", 1)):  # the newest chunk must stay visible
            object.__setattr__(self, name, whole_number(name, getattr(self, name), minimum, error=ConfigError))
        one_of(("absolute", "window", "given"), "positions", self.positions, ConfigError)

    @property
    def max_chunks(self) -> int:
        """Most committed chunks visible at once (pins not counted)."""
        return self.sink_chunks + self.recent_chunks

    def live(self, num_committed: int) -> tuple[int, ...]:
        """Indices of the chunks kept after `num_committed` commits: sinks, then recent ones, ascending.

        sink 1, recent 2, 6 committed:   [0] 1  2  3 [4  5]
        """
        first_recent = max(self.sink_chunks, num_committed - self.recent_chunks)
        return (*range(min(self.sink_chunks, num_committed)), *range(first_recent, num_committed))

    def keeps(self, chunk_index: int, num_committed: int) -> bool:
        """Whether a committed chunk is among `live(num_committed)`."""
        return chunk_index < self.sink_chunks or chunk_index >= num_committed - self.recent_chunks

    def leaves(self, num_committed: int) -> tuple[int, ...]:
        """The chunk that commit number `num_committed` pushes out of the window, if any."""
        oldest = num_committed - self.recent_chunks - 1
        return (oldest,) if oldest >= self.sink_chunks else ()


@dataclass(frozen=True)
class Commit:
    """One chunk that a stream is going to commit, if that is known in advance."""

    num_tokens: int
    drops: tuple[int, ...] = ()
    """Chunks that the stream drops before this commit, because they will not be read again."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", whole_number("num_tokens of a commit", self.num_tokens, 1))
        object.__setattr__(self, "drops", whole_numbers("drops of a commit", self.drops, 0))


def planned_peak_tokens(window: Window, commits: Sequence[Commit]) -> int:
    """Most tokens that one branch of a stream ever holds while exactly these chunks are committed and dropped."""
    held: dict[int, int] = {}
    total = peak = 0
    for i, commit in enumerate(commits):
        total += commit.num_tokens - sum(held.pop(index, 0) for index in commit.drops)
        held[i] = commit.num_tokens
        peak = max(peak, total)
        total -= sum(held.pop(index, 0) for index in window.leaves(i + 1))
    return peak
