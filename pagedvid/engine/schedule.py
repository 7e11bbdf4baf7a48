"""The order of work of one video, as plain data that its model gives: rounds of query ranges.

A round is what one packed forward does for one video. The engine runs any number of videos together, each at its own
round; it knows nothing more about what a model's chunks, passes and roles mean.

    chunk by chunk      | 0 | 0 | 0 commit | 1 | 1 | 1 commit |
    chunks in flight    | 0 | 0 1 | 0 1 2 | 0 commit, 1 2 3 | 1 2 3 |        several ranges, each at its own noise level
    rebuilt memory      | 0 | 0 | frames 0..3 commit | 1 | 1 | drop, frames 0..7 commit | 2 |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from pagedvid.cache.window import Commit, Window
from pagedvid.errors import ConfigError

MAX_PLANNED_CHUNKS = 10_000
"""Most chunks of a video whose commits are planned one by one when it is submitted; this is hours of video."""


def check_plannable(num_frames: int, num_chunks: int) -> None:
    """Raises ConfigError for a video of more chunks than can be planned."""
    if num_chunks > MAX_PLANNED_CHUNKS:
        raise ConfigError(
            f"a video of {num_frames} latent frames has {num_chunks} chunks; at most {MAX_PLANNED_CHUNKS} can be "
            "planned: ask for fewer frames"
        )


@dataclass(frozen=True)
class Range:
    """Some frames of the video in one forward: a chunk being denoised, or frames whose keys and values are stored."""

    frames: Sequence[int]
    """Its latent frames, ascending; those of a chunk are `range(first, stop)`."""
    noise_level: float
    """The noise level that the network is given, on the model's own scale."""
    role: str = "cond"
    """What its prediction is for, by which the model knows what to feed it (own prompt, null text, ...)."""
    branch: str = "cond"
    """The cached history that it reads and stores into, one of `ModelGeometry.branches`."""
    visible: tuple[int, ...] | None = None
    """The committed chunks that it sees, by order of commit from 0; None: all that the stream keeps."""
    sees: tuple[int, ...] = ()
    """Other ranges of the same round whose current keys it sees in addition to its own."""
    commits: bool = False
    """Whether its keys and values are stored, as the next committed chunk. Then it is the first range of its branch
    without a `position`, unless positions are given."""
    position: int | None = None
    """Frame at which its rotary positions start; None: behind everything committed and the ranges before it. Every
    range of a model has one whose `positions` are "given"; its chunk keeps it."""
    tag: Any = None
    """Handed to `attend` with its tokens and kept with the chunk that it stores; opaque to engine and cache."""


@dataclass(frozen=True)
class Hold:
    """A range's prediction that is kept for the chunk's next `Advance`, in a later round."""

    chunk: int
    range: int


@dataclass(frozen=True)
class Advance:
    """One move of the sampler for one chunk, from the predictions of some ranges of the round and those held for it."""

    chunk: int
    ranges: tuple[int, ...]
    """Ranges of the round that carry the chunk; their roles differ. Predictions of other ranges are not used."""
    noise_level: float
    next_noise_level: float


@dataclass(frozen=True)
class Round:
    """One video's share of a packed forward, and what happens after it."""

    ranges: tuple[Range, ...]
    advances: tuple[Advance, ...] = ()
    finished: tuple[int, ...] = ()
    """Chunks that are clean now: their frames go out."""
    drops: tuple[int, ...] = ()
    """Committed chunks that no later round reads: their pages are free at once."""
    forgets: tuple[int, ...] = ()
    """Chunks whose latents no later round carries."""
    holds: tuple[Hold, ...] = ()
    """For guidance in several forwards: the predictions of this one that are kept."""

    @property
    def num_frames(self) -> int:
        """Latent frames of all ranges: the cost of the round in frames."""
        return sum(len(part.frames) for part in self.ranges)


@dataclass(frozen=True)
class Schedule:
    """All rounds of one video, and what its stream must promise for them."""

    rounds: Callable[[], Iterator[Round]]
    """Makes a new iterator over all rounds; every call gives the same rounds."""
    window: Window
    """Which committed chunks stay until a round drops them."""
    num_commits: int
    """Chunks that each branch commits over the whole video."""
    max_range_frames: int
    """Frames of the longest range."""
    commits: tuple[tuple[int, tuple[int, ...]], ...] | None = None
    """(frames, chunks dropped before) of every commit; None: `max_range_frames` each, and only the window drops."""
    first_frame: int = 0
    """Earlier frames of the video were given, not generated, and are not output."""

    def chunk_from(self, frame: int, frames_per_chunk: int) -> int:
        """The first chunk that begins at or after an output frame; for the number of frames the number of chunks."""
        return -(-(self.first_frame + frame) // frames_per_chunk)

    def frames_begun(self, num_rounds: int, frames_per_chunk: int) -> int:
        """Output frames of all chunks that the first rounds begin, surplus frames included: what takes over at the next
        chunk boundary counts from there on."""
        last = max((part.frames[-1] for it in islice(self.rounds(), num_rounds) for part in it.ranges), default=-1)
        return max(0, (last // frames_per_chunk + 1) * frames_per_chunk - self.first_frame)

    def planned_commits(self, tokens_per_frame: int) -> tuple[Commit, ...] | None:
        """`commits` in tokens, as `CacheManager.open` takes them."""
        if self.commits is None:
            return None
        return tuple(Commit(num_frames * tokens_per_frame, drops) for num_frames, drops in self.commits)


def with_endings(
    rounds: Callable[[], Iterator[Round]], frames_per_chunk: int, window: Window
) -> Callable[[], Iterator[Round]]:
    """The rounds with `drops` and `forgets` filled in: each stored chunk leaves after its last reader, if the window
    still keeps it then and it is no sink, and each chunk's latents after the last round that carries them. For models
    whose ranges list what they see and whose branches store the same chunks together.

    The rounds are generated once now, to find the last use of everything, and again by every iterator; they are never
    all in memory.
    """
    last_read: dict[int, int] = {}
    last_carried: dict[int, int] = {}
    num_commits = 0
    for number, round_ in enumerate(rounds()):
        for part in round_.ranges:
            for index in part.visible or ():
                last_read[index] = number
            for chunk in range(part.frames[0] // frames_per_chunk, part.frames[-1] // frames_per_chunk + 1):
                last_carried[chunk] = number
        if _commits(round_):
            last_read[num_commits] = number
            num_commits += 1
    unread, forgets = _by_round(last_read), _by_round(last_carried)

    def ended() -> Iterator[Round]:
        num_commits = 0
        for number, round_ in enumerate(rounds()):
            num_commits += _commits(round_)
            drops = tuple(
                index
                for index in unread.get(number, ())
                if index >= window.sink_chunks and window.keeps(index, num_commits)
            )
            endings = drops, tuple(forgets.get(number, ()))
            changes = endings != (round_.drops, round_.forgets)
            yield replace(round_, drops=endings[0], forgets=endings[1]) if changes else round_

    return ended


def _commits(round_: Round) -> bool:
    return any(part.commits for part in round_.ranges)


def _by_round(last_round: Mapping[int, int]) -> dict[int, list[int]]:
    """Chunks, ascending, by the last round that uses them."""
    chunks: defaultdict[int, list[int]] = defaultdict(list)
    for chunk in sorted(last_round):
        chunks[last_round[chunk]].append(chunk)
    return chunks


def planned(rounds: Callable[[], Iterator[Round]], window: Window, first_frame: int = 0) -> Schedule:
    """A schedule whose commits and drops are read off its rounds; for models whose branches store the same chunks
    together.

    The peak of pages is then exact: that of what the rounds keep, not of the whole window. Raises ConfigError when a
    branch commits twice in a round, or without the others, and when a round reads a chunk that is not stored.
    """
    commits: list[tuple[int, tuple[int, ...]]] = []
    kept: set[int] = set()
    dropped: tuple[int, ...] = ()
    longest = 0
    for number, round_ in enumerate(rounds()):
        stored = [part for part in round_.ranges if part.commits]
        storing = sorted(part.branch for part in stored)
        wanted = {index for part in round_.ranges for index in part.visible or ()} | set(round_.drops) - {len(commits)}
        if (stored and storing != sorted({part.branch for part in round_.ranges})) or not wanted <= kept:
            raise ConfigError(
                f"round {number} commits {len(stored)} chunks (at most 1 of every branch, of all of them together) and "
                f"needs the chunks {sorted(wanted)}; kept are {sorted(kept)}"
            )
        if stored:
            kept.add(len(commits))
            commits.append((len(stored[0].frames), dropped))
            dropped = ()
        kept = {index for index in kept - set(round_.drops) if window.keeps(index, len(commits))}
        dropped += round_.drops
        longest = max(longest, *(len(part.frames) for part in round_.ranges))
    return Schedule(rounds, window, len(commits), longest, tuple(commits), first_frame)
