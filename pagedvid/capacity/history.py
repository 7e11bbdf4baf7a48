"""What a model remembers, and how long one stream therefore is, in integers.

    sliding    sinks stay, recent chunks slide, the current chunk joins them when it is committed
               0+6:  [ . . . . . . | current ]       peak: 7 chunks
    rebuilt    for every chunk the model picks frames, writes their keys and values in one pass, and only reads them
               20frames:  [ . . . . . ]  current     peak: 5 chunks; the current chunk is never stored

Neither sinks nor recent chunks nor memory frames count the chunk being denoised. Models that state a window *with* the
current chunk or the sinks inside are converted in their card.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pagedvid.cache.sizes import KVShape, peak_pages
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError
from pagedvid.shown import short, shown

if TYPE_CHECKING:
    from pagedvid.capacity.model_card import ModelCard, Resolution

MAX_BRANCHES = 16
"""Predictions of one step that keep a history each."""
MAX_LENGTH = 10**9
"""Chunks or frames; more is a slip of the keyboard."""
LINEAR_FROM_CHUNKS = 12
"""From here on, `peak_pages` grows by one chunk's pages per chunk, so long windows need not be walked through."""


@dataclass(frozen=True)
class SlidingHistory:
    """First chunks and newest chunks."""

    sink_chunks: int
    recent_chunks: int

    def __str__(self) -> str:
        return f"{self.sink_chunks}+{self.recent_chunks}"

    @property
    def length(self) -> int:
        """What a search for the longest history varies."""
        return self.recent_chunks

    def with_length(self, length: int) -> SlidingHistory:
        """The same sinks, another number of recent chunks."""
        return replace(self, recent_chunks=length)

    def num_frames(self, frames_per_chunk: int) -> int:
        """Latent frames that are kept."""
        return (self.sink_chunks + self.recent_chunks) * frames_per_chunk


@dataclass(frozen=True)
class RebuiltHistory:
    """Frames that are chosen and written anew for every chunk."""

    memory_frames: int

    def __str__(self) -> str:
        return f"{self.memory_frames}frames"

    @property
    def length(self) -> int:
        """What a search for the longest history varies."""
        return self.memory_frames

    def with_length(self, length: int) -> RebuiltHistory:
        """Another number of frames."""
        return RebuiltHistory(length)

    def num_frames(self, frames_per_chunk: int) -> int:
        """Latent frames that are kept."""
        return self.memory_frames


History = SlidingHistory | RebuiltHistory


def read_history(written: object) -> History:
    """From "1+6" (sink and recent chunks) or "20frames". Raises ConfigError."""
    word = str(written).replace(" ", "")
    if match := re.fullmatch(r"(\d{1,12})\+(\d{1,12})", word, re.ASCII):
        sink_chunks, recent_chunks = map(int, match.groups())
        _check_length(recent_chunks, written)
        _check_length(max(sink_chunks, 1), written)
        return SlidingHistory(sink_chunks, recent_chunks)
    if match := re.fullmatch(r"(\d{1,12})frames?", word, re.ASCII):
        _check_length(int(match[1]), written)
        return RebuiltHistory(int(match[1]))
    raise _bad_window(written)


def window_of(card: ModelCard, written: str) -> History:
    """What --window asks for: "1+6" (chunks), "18frames", "4.5s" of history. Raises ConfigError."""
    if match := re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)s", written.replace(" ", ""), re.ASCII):
        return history_of_seconds(card, float(match[1]))
    history = read_history(written)
    if isinstance(history, RebuiltHistory):
        return history_of_frames(card, history.memory_frames)
    if isinstance(card.window, RebuiltHistory):
        raise ConfigError(
            f"--window {short(written)}: {card.name} rebuilds its memory for every chunk and has no sinks; give its "
            f"length as frames or seconds, such as {card.window}"
        )
    return history


def history_of_seconds(card: ModelCard, seconds: float) -> History:
    """The shortest history of at least that many seconds of video."""
    frames = seconds * card.latent_frames_per_second
    if frames > MAX_LENGTH:
        raise ConfigError(f"a history of {seconds:g} s is too long; the most is {MAX_LENGTH} frames")
    return history_of_frames(card, max(1, -int(-frames // 1)))


def history_of_frames(card: ModelCard, num_frames: int) -> History:
    """The shortest history of at least that many latent frames; a sliding one keeps the card's sinks."""
    if isinstance(card.window, RebuiltHistory):
        return RebuiltHistory(num_frames)
    num_chunks = -(-num_frames // card.frames_per_chunk)
    return card.window.with_length(max(1, num_chunks - card.window.sink_chunks))


def _check_length(length: int, written: object) -> None:
    if not 1 <= length <= MAX_LENGTH:
        raise _bad_window(written)


def _bad_window(written: object) -> ConfigError:
    return ConfigError(
        f"window is {shown(written)}; write SINK+RECENT in chunks (0+6, at least one recent), frames (18frames) or "
        f"seconds (4.5s); none counts the current chunk, and the most is {MAX_LENGTH}"
    )


@dataclass(frozen=True)
class StreamSize:
    """One stream of one model at one resolution, as the cache sees it."""

    shape: KVShape
    window: Window
    chunk_tokens: int
    """Of one stored chunk."""
    num_branches: int
    max_commits: int | None
    current_tokens: int
    """Denoised together, per branch."""
    num_query_heads: int
    seconds: float
    """Video that the history spans."""

    def on_pages_for(self, codecs: StreamCodecs) -> StreamSize:
        """The same on pages that suit the codecs."""
        return replace(self, shape=self.shape.with_pages_for(codecs))

    def pages(self, codecs: StreamCodecs) -> int:
        """Pages that `open` reserves for it: `peak_pages` of all branches, at once for any window."""
        extra_recent = max(0, self.window.recent_chunks - LINEAR_FROM_CHUNKS)
        extra_sinks = max(0, self.window.sink_chunks - LINEAR_FROM_CHUNKS)
        short = Window(self.window.sink_chunks - extra_sinks, self.window.recent_chunks - extra_recent)
        max_commits = None if self.max_commits is None else self.max_commits - extra_recent - extra_sinks
        pages = peak_pages(self.shape, short, codecs, self.chunk_tokens, max_commits)
        pages += extra_recent * self.shape.chunk_pages(self.chunk_tokens, codecs.steady)
        pages += extra_sinks * self.shape.chunk_pages(self.chunk_tokens, codecs.final(0, Window(sink_chunks=1)))
        return self.num_branches * pages


def stream_size(
    card: ModelCard, resolution: Resolution, history: History, num_branches: int | None = None
) -> StreamSize:
    """The stream of a model with that history. Raises ConfigError when the strides do not divide the resolution."""
    frame_tokens = card.tokens_per_frame(resolution)
    num_frames = history.num_frames(card.frames_per_chunk)
    if isinstance(history, RebuiltHistory):
        num_chunks = -(-num_frames // card.frames_per_chunk)
        # Chunks of equal length, so that the last one is not a short one full of padding.
        window, chunk_tokens = Window(0, num_chunks), -(-num_frames * frame_tokens // num_chunks)
        max_commits: int | None = num_chunks
    else:
        window = Window(history.sink_chunks, history.recent_chunks)
        chunk_tokens, max_commits = card.frames_per_chunk * frame_tokens, None
    return StreamSize(
        shape=card.shape.with_frames(frame_tokens, card.frames_per_chunk),
        window=window,
        chunk_tokens=chunk_tokens,
        num_branches=num_branches or len(card.branches),
        max_commits=max_commits,
        current_tokens=card.frames_in_flight * frame_tokens,
        num_query_heads=card.num_query_heads,
        seconds=num_frames / card.latent_frames_per_second,
    )
