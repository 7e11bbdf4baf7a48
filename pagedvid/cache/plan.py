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
from functools import cached_property
from typing import Any

from pagedvid.arguments import instance_of, whole_number, whole_numbers
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.stream import BranchHistory, Stream
from pagedvid.errors import StateError

MAX_POSITION = 2**63 - 1
"""Of a token; the first one is 0."""


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
    position: int | None = None
    """Position of its first token; None: after everything committed and in flight before it. A commit pass has one only
    where the stream's positions are given (`Window.positions`), and there every range has."""
    tag: Any = None
    """Kept with the chunk that a commit pass stores, and not interpreted by the cache (cameras of its frames, ...)."""
    replaces: int | None = None
    """Has the position of this chunk (KV recache) and sees only the chunks before it; a commit replaces the chunk."""

    def __post_init__(self) -> None:
        for name, limits in (("num_tokens", ()), ("position", (0, MAX_POSITION)), ("replaces", ())):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole_number(f"{name} of a range", getattr(self, name), *limits))
        instance_of(bool, "commit of a range", self.commit, "True or False", StateError)
        object.__setattr__(self, "sees_ranges", whole_numbers("sees_ranges", self.sees_ranges))
        if self.visible is not None:
            object.__setattr__(self, "visible", whole_numbers("visible", self.visible))


@dataclass(frozen=True)
class Read:
    """One committed chunk as a range sees it; `first_token` is the position of its first token in this step."""

    chunk: Chunk
    first_token: int


@dataclass(eq=False)
class PendingChunk:
    """A chunk under construction: its bytes arrive layer by layer, and no range can see it yet."""

    chunk: Chunk
    """Without pages until the manager lends them."""
    source: Chunk | None = None
    """The chunk that it stores again in other codecs; None: it stores the keys and values of this pass."""
    replaces: Chunk | None = None
    """The chunk that it replaces with new keys and values (KV recache)."""
    layers_written: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class RangePlan:
    """One query range, resolved."""

    start: int
    stop: int
    stream: Stream
    branch: str
    first_token: int
    """Position of its first token."""
    reads: tuple[Read, ...]
    current: tuple[int, ...]
    """Ranges of this step whose current keys it sees, its own included."""
    writes: tuple[PendingChunk, ...]
    tag: Any = None

    @cached_property
    def num_tokens(self) -> int:
        """Number of its packed tokens."""
        return self.stop - self.start


@dataclass(frozen=True)
class StepPlan:
    """All ranges of a step, in packed order."""

    ranges: tuple[RangePlan, ...]

    @property
    def num_tokens(self) -> int:
        """Number of packed tokens of the step."""
        return self.ranges[-1].stop

    @property
    def pending(self) -> tuple[PendingChunk, ...]:
        """Every chunk that the step stores."""
        return tuple(pending for range_ in self.ranges for pending in range_.writes)


def tokens_of(asked: QueryRange) -> int:
    """Number of tokens of a range."""
    return asked.stream.chunk_tokens if asked.num_tokens is None else asked.num_tokens


def visible_chunks(asked: QueryRange) -> tuple[Chunk, ...]:
    """The committed chunks that a range reads."""
    chunks = asked.stream.history(asked.branch).select(asked.visible)
    if asked.replaces is None:
        return chunks
    return tuple(chunk for chunk in chunks if chunk.index < asked.replaces)


def chunk_positions(history: BranchHistory) -> dict[int, int]:
    """Position of the first token of every live chunk.

    positions="window": re-indexed from 0 in order, so that the gap between sinks and recent chunks closes.
    """
    if history.window.positions == "given":
        return {index: chunk.position for index, chunk in history.chunks.items()}
    if history.window.positions == "absolute":
        return {index: chunk.first_token for index, chunk in history.chunks.items()}
    positions, next_token = {}, 0
    for index, chunk in history.chunks.items():
        positions[index] = next_token
        next_token += chunk.num_tokens
    return positions


def next_position(history: BranchHistory) -> int:
    """Position of the first token after everything committed, where positions are counted and not given."""
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
        position = positions[old.index]
        new = Chunk(old.index, old.first_token, position, old.num_tokens, old.codecs, asked.tag)
        return (PendingChunk(new, replaces=old),)
    index = history.num_committed
    own = PendingChunk(
        Chunk(
            index=index,
            first_token=history.num_committed_tokens,
            position=next_position(history) if asked.position is None else asked.position,
            num_tokens=tokens_of(asked),
            codecs=stream.codecs.at_commit(index, stream.window),
            tag=asked.tag,
        )
    )
    last = history.chunks.get(index - 1)
    if last is None or history.is_settled(last.index):
        return (own,)
    if last.index in history.pinned:
        codecs = stream.codecs.final(last.index, stream.window)
    elif stream.codecs.recodes(last.index, stream.window):
        codecs = stream.codecs.stored(last.index, 1, stream.window)
    else:
        return (own,)
    recoded = Chunk(last.index, last.first_token, positions[last.index], last.num_tokens, codecs, last.tag)
    return (PendingChunk(recoded, source=last), own)


def resolve_ranges(ranges: Sequence[QueryRange], writes: Sequence[tuple[PendingChunk, ...]]) -> StepPlan:
    """Packs the ranges one after the other and gives each its reads and positions."""
    in_flight: dict[tuple[int, str], int] = {}
    resolved, start = [], 0
    for number, (asked, pending) in enumerate(zip(ranges, writes, strict=True)):
        history = asked.stream.history(asked.branch)
        positions = chunk_positions(history)
        num_tokens = tokens_of(asked)
        if asked.position is not None and (not asked.commit or history.window.positions == "given"):
            position = asked.position
        elif asked.replaces is None:
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
                tag=asked.tag,
            )
        )
        start += num_tokens
    return StepPlan(tuple(resolved))
