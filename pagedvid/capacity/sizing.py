"""How many streams fit, from integers alone.

Pages, peaks and bytes are those of cache/stream_sizes.py, so what is promised here is what `open` reserves.

    memory = weights + reserve + workspace (current chunk, scratch, commit, tables) + pool
    streams = pool pages // peak pages
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import window_bits_per_value
from pagedvid.capacity.cards import ModelCard, Resolution, StreamSize
from pagedvid.capacity.look_back import MAX_LENGTH, LookBack
from pagedvid.capacity.weights import NO_WEIGHTS, WeightBytes, weight_formats
from pagedvid.capacity.workspace import commit_bytes, current_bytes, scratch_bytes, table_bytes
from pagedvid.errors import CapacityError, ConfigError
from pagedvid.shown import shown
from pagedvid.units import format_bytes

CODEC_CHOICES: dict[str, StreamCodecs] = {
    **{codec: StreamCodecs(codec) for codec in ("bf16", "int8", "int4", "int2")},
    "mixed": StreamCodecs("int2", sink="int8", newest="bf16"),
}
"""Finest first. `mixed`: sinks in int8, the newest chunk in BF16 until the next one is committed, the rest in int2."""


@dataclass(frozen=True)
class Question:
    """What is to be sized: a model at a resolution with a look-back, on a device."""

    card: ModelCard
    resolution: Resolution
    look_back: LookBack
    memory_bytes: int
    weights_format: str
    """A key of `weight_formats`."""
    reserve_bytes: int = 0
    """Set aside for activations, VAE, text encoder."""
    num_branches: int | None = None
    """None: as many as the card names."""

    @property
    def weights(self) -> WeightBytes:
        """Bytes of the model's weights. Raises ConfigError for a format that the card does not have."""
        formats = weight_formats(self.card)
        if self.weights_format not in formats:
            raise ConfigError(
                f"--weights is {shown(self.weights_format)}; allowed for {self.card.name} are {', '.join(formats)}"
            )
        return formats[self.weights_format]

    @property
    def weights_bytes(self) -> int:
        """Those on the device. Raises ConfigError."""
        return self.weights.device

    @property
    def size(self) -> StreamSize:
        """One stream."""
        return self.card.stream_size(self.resolution, self.look_back, self.num_branches)

    def with_look_back(self, look_back: LookBack) -> Question:
        """The same question with another look-back."""
        return replace(self, look_back=look_back)


@dataclass(frozen=True)
class Answer:
    """What fits with one choice of codecs."""

    name: str
    codecs: StreamCodecs
    bits_per_value: float
    """Mean over the values of the window: codes, step sizes, zero points, padding, correction factors of all heads that
    keep them."""
    chunk_bytes: int
    """One stored chunk in the codec of the history, one branch."""
    stream_pages: int
    stream_bytes: int
    """What `open` reserves: the stream's peak, all branches."""
    ratio_to_bf16: float
    """How many times smaller a stream is than in BF16 pages."""
    padding_waste_ratio: float
    pool_pages: int
    pool_bytes: int
    num_streams: int
    longest: LookBack | None
    """The longest look-back with which a single stream fits; None when not even the shortest does."""
    longest_seconds: float
    current_bytes: int
    scratch_bytes: int
    commit_bytes: int
    table_bytes: int
    """Tables of klt codecs, once per model."""

    @property
    def workspace_bytes(self) -> int:
        """Everything but weights, reserve and pages."""
        return self.current_bytes + self.scratch_bytes + self.commit_bytes + self.table_bytes


def check_memory(question: Question) -> None:
    """Raises CapacityError when not even weights and reserve fit."""
    fixed = question.weights_bytes + question.reserve_bytes
    if fixed < question.memory_bytes:
        return
    formats = weight_formats(question.card)
    smaller = [name for name, size in formats.items() if name != NO_WEIGHTS and size.device < question.weights_bytes]
    hint = f"--weights {smaller[0]}, " if smaller else ""
    reserve = f" and the reserve {format_bytes(question.reserve_bytes)}" if question.reserve_bytes else ""
    raise CapacityError(
        f"the {question.weights_format} weights of {question.card.name} take {format_bytes(question.weights_bytes)}"
        f"{reserve}, but the memory is {format_bytes(question.memory_bytes)}: nothing is left for a cache. "
        f"Give more memory, {hint}or --weights none if they are kept elsewhere."
    )


def answer(question: Question, name: str, codecs: StreamCodecs) -> Answer:
    """What fits with these codecs. Raises ConfigError for a resolution or weights format that the model lacks."""
    size = question.size.on_pages_for(codecs)
    pages = size.pages(codecs)
    bf16_bytes = question.size.pages(StreamCodecs("bf16")) * question.size.shape.page_bytes
    pool_pages = _pool_pages(question, size, codecs)
    longest = longest_look_back(question, codecs, num_streams=1)
    workspace = _workspace(size, codecs)
    return Answer(
        name=name,
        codecs=codecs,
        bits_per_value=window_bits_per_value(size.shape, size.window, codecs, size.chunk_tokens),
        chunk_bytes=size.shape.stored_bytes(size.chunk_tokens, codecs.steady),
        stream_pages=pages,
        stream_bytes=size.shape.page_bytes * pages,
        ratio_to_bf16=bf16_bytes / (size.shape.page_bytes * pages),
        padding_waste_ratio=size.shape.padding_waste_ratio(size.chunk_tokens, codecs.steady),
        pool_pages=pool_pages,
        pool_bytes=size.shape.page_bytes * pool_pages,
        num_streams=pool_pages // pages,
        longest=longest,
        longest_seconds=question.with_look_back(longest).size.seconds if longest else 0.0,
        current_bytes=workspace[0],
        scratch_bytes=workspace[1],
        commit_bytes=workspace[2],
        table_bytes=workspace[3],
    )


def answers(question: Question, choices: Mapping[str, StreamCodecs]) -> list[Answer]:
    """One answer per choice.

    Raises CapacityError when no choice fits a single stream; it says what is needed, what is available and the longest
    window that would fit.
    """
    check_memory(question)
    rows = [answer(question, name, codecs) for name, codecs in choices.items()]
    if not any(row.num_streams for row in rows):
        raise _nothing_fits(question, rows)
    return rows


def _nothing_fits(question: Question, rows: list[Answer]) -> CapacityError:
    smallest = min(rows, key=lambda row: row.stream_bytes)
    fitting = [row for row in rows if row.longest is not None]
    if fitting:
        best = max(fitting, key=lambda row: row.longest_seconds)
        hint = f"the longest window that fits is {best.longest} ({best.longest_seconds:g} s) in {best.name}"
    else:
        hint = "not even the shortest window fits; lower the resolution, or give more memory"
    return CapacityError(
        f"no stream of {question.card.name} at {question.resolution} with the window {question.look_back} fits: "
        f"{smallest.name} needs {format_bytes(smallest.stream_bytes)}, but of {format_bytes(question.memory_bytes)}, "
        f"{format_bytes(smallest.pool_bytes)} are left after weights, reserve and workspace; {hint}."
    )


def longest_look_back(question: Question, codecs: StreamCodecs, num_streams: int) -> LookBack | None:
    """The longest look-back with which that many streams fit; None when not even the shortest does."""

    def fits(length: int) -> bool:
        size = question.with_look_back(question.look_back.with_length(length)).size.on_pages_for(codecs)
        return num_streams * size.pages(codecs) <= _pool_pages(question, size, codecs)

    if not fits(1):
        return None
    low, high = 1, 2
    while high <= MAX_LENGTH and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return question.look_back.with_length(low)


def streams_over_memory(question: Question, codecs: StreamCodecs, memories: Sequence[int]) -> list[int]:
    """Streams that fit in each of several memories in bytes, instead of in the question's own."""
    size = question.size.on_pages_for(codecs)
    stream_pages, fixed_bytes = size.pages(codecs), _fixed_bytes(question, size, codecs)
    return [size.shape.pages_in_memory(max(0, memory - fixed_bytes)) // stream_pages for memory in memories]


def _pool_pages(question: Question, size: StreamSize, codecs: StreamCodecs) -> int:
    return size.shape.pages_in_memory(max(0, question.memory_bytes - _fixed_bytes(question, size, codecs)))


def _fixed_bytes(question: Question, size: StreamSize, codecs: StreamCodecs) -> int:
    """Bytes that are not pages; they do not depend on the number of streams."""
    return question.weights_bytes + question.reserve_bytes + sum(_workspace(size, codecs))


def _workspace(size: StreamSize, codecs: StreamCodecs) -> tuple[int, int, int, int]:
    """Bytes of the current chunk, the scratch, a commit's temporaries and the tables."""
    return (
        current_bytes(size),
        scratch_bytes(size, codecs),
        commit_bytes(size, codecs, measured=codecs.correction == "measured", has_rope=True),
        table_bytes(size, codecs),
    )
