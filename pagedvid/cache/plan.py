"""What one step reads and writes, decided before the forward runs: integers and chunks, no tensors of the model.

The packed tokens of a step are split into ranges, one per chunk being denoised or committed:

    tokens   0 ........ 4680 ........ 9360 ........ 14040
    range    | stream a     | stream b     | stream b, next chunk in flight
    reads      a: 0 4 5       b: 0 1         b: 1                committed chunks (its own list)
    sees       itself         itself         range 1 and itself  current keys, BF16
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from pagedvid.cache.chunk import Chunk
from pagedvid.cache.pool import PageIds
from pagedvid.cache.stream import BranchHistory, Stream
from pagedvid.errors import ShapeError, StateError


@dataclass(frozen=True)
class QueryRange:
    """One chunk of one branch inside a packed forward, as the caller asks for it."""

    stream: Stream
    branch: str = "cond"
    num_tokens: int | None = None
    """None: the stream's chunk_tokens."""
    commit: bool = False
    """Whether this forward is the chunk's commit pass: its keys and values are stored."""
    visible: tuple[int, ...] | None = None
    """Indices of the committed chunks it may see; None: all that the stream keeps."""
    sees_ranges: tuple[int, ...] = ()
    """Other ranges of the same step whose current keys it sees besides its own (several chunks in flight)."""
    replaces: int | None = None
    """Stands in the place of this chunk (KV recache) and sees only the chunks before it; a commit takes its place."""


@dataclass(frozen=True)
class Read:
    """One committed chunk as a range sees it; `first_token` is where rotary embedding places it."""

    chunk: Chunk
    first_token: int


@dataclass
class PendingChunk:
    """A chunk under construction: pages are taken, the bytes arrive layer by layer, nobody can see it yet."""

    index: int
    first_token: int
    """Tokens of the video before it."""
    position: int
    """Where rotary embedding places its first token in this step."""
    num_tokens: int
    codec: str
    source: Chunk | None = None
    """The chunk whose stored values it takes over in another codec; None: the keys and values of this pass."""
    replaces: Chunk | None = None
    """The chunk whose place it takes with new keys and values (KV recache)."""
    pages: PageIds = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    alpha: Tensor | None = None
    layers_written: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class RangePlan:
    """One query range, resolved."""

    start: int
    stop: int
    stream: Stream
    branch: str
    first_token: int
    """Where rotary embedding places its first token."""
    reads: tuple[Read, ...]
    current: tuple[int, ...]
    """Ranges of this step whose current keys it sees, its own included."""
    writes: tuple[PendingChunk, ...]

    @property
    def num_tokens(self) -> int:
        """Its packed tokens."""
        return self.stop - self.start


@dataclass(frozen=True)
class StepPlan:
    """All ranges of a step, in packed order."""

    ranges: tuple[RangePlan, ...]

    @property
    def num_tokens(self) -> int:
        """Packed tokens of the step."""
        return self.ranges[-1].stop

    @property
    def pending(self) -> tuple[PendingChunk, ...]:
        """Every chunk that the step stores."""
        return tuple(pending for range_ in self.ranges for pending in range_.writes)


def check_ranges(ranges: Sequence[QueryRange]) -> None:
    """Raises StateError or ShapeError for a request that cannot be planned; takes and changes nothing."""
    if not ranges:
        raise StateError("a step needs at least one query range")
    earlier: set[tuple[int, str]] = set()
    committing: set[tuple[int, str]] = set()
    for number, asked in enumerate(ranges):
        _check_tokens(number, asked)
        others, visible = asked.sees_ranges, asked.visible or ()
        if len(set(others)) < len(others) or any(not 0 <= other < len(ranges) or other == number for other in others):
            raise StateError(f"range {number} sees ranges {others}; allowed are others below {len(ranges)}, each once")
        if len(set(visible)) < len(visible):
            raise StateError(f"range {number} names a chunk twice: {visible}")
        key, appends = (asked.stream.id, asked.branch), asked.commit and asked.replaces is None
        if (asked.commit and key in committing) or (appends and key in earlier):
            raise StateError(
                f"range {number} commits a chunk of stream {key[0]}, branch {key[1]!r}, but an earlier range belongs "
                "to it too; commit one chunk per step, and before the chunks in flight"
            )
        if asked.commit:
            committing.add(key)
        if asked.replaces is None:
            earlier.add(key)


def _check_tokens(number: int, asked: QueryRange) -> None:
    stream, history, num_tokens = asked.stream, asked.stream.history(asked.branch), tokens_of(asked)
    if not 1 <= num_tokens <= stream.chunk_tokens:
        raise ShapeError(
            f"range {number} has {num_tokens} tokens; stream {stream.id} was opened for 1 to {stream.chunk_tokens}"
        )
    if asked.replaces is not None:
        (old,) = history.select((asked.replaces,))
        if num_tokens != old.num_tokens:
            raise ShapeError(
                f"range {number} has {num_tokens} tokens; chunk {old.index}, which it replaces, {old.num_tokens}"
            )
    elif asked.commit and history.num_committed == stream.max_chunks:
        raise StateError(f"stream {stream.id} was opened for max_chunks={stream.max_chunks}, all of them are committed")


def tokens_of(asked: QueryRange) -> int:
    """Tokens of a range."""
    return asked.stream.chunk_tokens if asked.num_tokens is None else asked.num_tokens


def visible_chunks(asked: QueryRange) -> tuple[Chunk, ...]:
    """The committed chunks that a range reads."""
    chunks = asked.stream.history(asked.branch).select(asked.visible)
    if asked.replaces is None:
        return chunks
    return tuple(chunk for chunk in chunks if chunk.index < asked.replaces)


def chunk_positions(history: BranchHistory) -> dict[int, int]:
    """Rotary position of the first token of every live chunk.

    positions="window": re-indexed from 0 in order, so the gap between sinks and recent chunks closes.
    """
    if history.window.positions == "absolute":
        return {index: chunk.first_token for index, chunk in history.chunks.items()}
    positions, next_token = {}, 0
    for index, chunk in history.chunks.items():
        positions[index] = next_token
        next_token += chunk.num_tokens
    return positions


def next_position(history: BranchHistory) -> int:
    """Rotary position of the first token after everything committed."""
    if history.window.positions == "absolute":
        return history.num_committed_tokens
    return sum(chunk.num_tokens for chunk in history.chunks.values())


def wanted_chunks(asked: QueryRange) -> tuple[PendingChunk, ...]:
    """The chunks that a range stores, still without pages: its own, and the previous one if it is to be recoded."""
    if not asked.commit:
        return ()
    stream, history = asked.stream, asked.stream.history(asked.branch)
    positions = chunk_positions(history)
    if asked.replaces is not None:
        (old,) = history.select((asked.replaces,))
        return (
            PendingChunk(old.index, old.first_token, positions[old.index], old.num_tokens, old.codec, replaces=old),
        )
    index = history.num_committed
    own = PendingChunk(
        index=index,
        first_token=history.num_committed_tokens,
        position=next_position(history),
        num_tokens=tokens_of(asked),
        codec=stream.codecs.at_commit(index, stream.window),
    )
    last = history.chunks.get(index - 1)
    if last is None or not (last.index in history.pinned or stream.codecs.recodes(last.index, stream.window)):
        return (own,)
    final = stream.codecs.final(last.index, stream.window)
    if last.codec == final:
        return (own,)
    return (PendingChunk(last.index, last.first_token, positions[last.index], last.num_tokens, final, source=last), own)


def resolve_ranges(ranges: Sequence[QueryRange], writes: Sequence[tuple[PendingChunk, ...]]) -> StepPlan:
    """Lays the ranges out one after the other and gives each its reads and positions."""
    in_flight: dict[tuple[int, str], int] = {}
    resolved, start = [], 0
    for number, (asked, pending) in enumerate(zip(ranges, writes, strict=True)):
        history = asked.stream.history(asked.branch)
        positions = chunk_positions(history)
        num_tokens = tokens_of(asked)
        if asked.replaces is None:
            key = (asked.stream.id, asked.branch)
            position = in_flight.get(key, next_position(history))
            in_flight[key] = position + num_tokens
        else:
            position = positions[asked.replaces]
        resolved.append(
            RangePlan(
                start=start,
                stop=start + num_tokens,
                stream=asked.stream,
                branch=asked.branch,
                first_token=position,
                reads=tuple(Read(chunk, positions[chunk.index]) for chunk in visible_chunks(asked)),
                current=(*asked.sees_ranges, number),
                writes=pending,
            )
        )
        start += num_tokens
    return StepPlan(tuple(resolved))
