"""A job: one video that has begun, with its stream, its latents and its place in its schedule.

Axes: T tokens in (frame, row, column) order, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_image import StreamImage
from pagedvid.engine.playout import Playout
from pagedvid.engine.protocol import Decoder, ModelGeometry, VideoModel
from pagedvid.engine.requests import Continuation, LaterPrompt, VideoRequest
from pagedvid.engine.schedule import Range, Round, Schedule
from pagedvid.errors import StateError


@dataclass
class Latents:
    """The latents of one video by chunk.

    A chunk exists from the first round that carries one of its frames until it is forgotten.
    """

    geometry: ModelGeometry
    chunks: dict[int, Tensor] = field(default_factory=dict)
    """[chunk_tokens, C] each. A tensor is never changed in place, so forks share it."""

    def missing(self, round_: Round) -> list[int]:
        """The chunks that this round is the first to carry."""
        size = self.geometry.frames_per_chunk
        carried = {frame // size for part in round_.ranges for frame in part.frames}
        return sorted(carried - self.chunks.keys())

    def begin(self, round_: Round, initial: Callable[[int], Tensor]) -> None:
        """Makes the missing chunks. `initial`: chunk index -> latents [chunk_tokens, C]. Raises what it raises."""
        for chunk in self.missing(round_):
            self.chunks[chunk] = initial(chunk)

    def of(self, frames: Sequence[int]) -> Tensor:
        """Latents of these frames, concatenated, [T, C]; for a whole chunk its tensor, not a copy."""
        size, tokens = self.geometry.frames_per_chunk, self.geometry.tokens_per_frame
        chunk, first = divmod(frames[0], size)
        if first == 0 and list(frames) == list(range(frames[0], frames[0] + size)):
            return self.chunks[chunk]
        places = [divmod(frame, size) for frame in frames]
        return torch.cat([self.chunks[chunk][place * tokens : (place + 1) * tokens] for chunk, place in places])


@dataclass(frozen=True)
class PromptChange:
    """A prompt that waits for the video's next chunk boundary."""

    prompt: str
    recache: bool
    """Whether the chunks that are kept are stored again under it."""


Change = PromptChange | Continuation
"""What waits for a video's next chunk boundary."""


@dataclass(eq=False)
class Job:
    """The state of one video that has begun. It holds pages through `stream`, or bytes in host memory through `image`.

    Its course changes at chunk boundaries only: before a round that begins a chunk, and after the last round. Given
    chunks have no boundaries: all of them are stored before anything changes, so that every fork shares them.
    """

    number: int
    """Order of arrival."""
    request: VideoRequest
    """As it stands now: `Engine.prompt` and `Engine.extend` replace it."""
    condition: Any
    schedule: Schedule
    latents: Latents
    decode: Decoder
    """The video's own decoder: it gets every latent frame that is output, in order."""
    stream: Stream | None = None
    image: StreamImage | None = None
    """Its stream while it is swapped out; then `stream` is None."""
    num_rounds_done: int = 0
    held: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """Predictions of earlier rounds by chunk and role, which the chunk's next `Advance` uses."""
    clean: dict[int, Tensor] = field(default_factory=dict)
    """Latents [T, C] of every committed chunk that is kept, by order of commit, so that it can be stored again."""
    waited_steps: int = 0
    """Steps in a row in which it could have run and did not."""
    num_frames_out: int = 0
    """Latent frames that were decoded."""
    num_output_frames: int = 0
    """Frames that were given out."""
    peak_bytes: tuple[int, int] = (0, 0)
    """(Most bytes that `stream` held between two steps, bytes of the same tokens as dense BF16.)"""
    playout: Playout | None = None
    """What its viewer has seen; None where nobody watches."""
    is_paused: bool = False
    """Whether a pause was asked for; a running video still goes on to its next chunk boundary."""
    changes: list[Change] = field(default_factory=list)
    """What waits for its next chunk boundary, in order: prompts, and forks."""
    credit_seconds: float | None = None
    """`playout.credit_seconds` at the beginning of the present step; None where nobody watches."""

    def __post_init__(self) -> None:
        self.follow(self.schedule)

    def follow(self, schedule: Schedule) -> None:
        """Goes on by another schedule, after the rounds that are done."""
        self.schedule = schedule
        self._later: Iterator[Round] = islice(schedule.rounds(), self.num_rounds_done, None)
        self._next = next(self._later, None)

    @property
    def is_over(self) -> bool:
        """Whether all rounds are done."""
        return self._next is None

    @property
    def round(self) -> Round:
        """The round that runs next; there is none once the job is over."""
        assert self._next is not None
        return self._next

    def next_round(self) -> None:
        """Moves past `round`, which is done."""
        self.num_rounds_done += 1
        self._next = next(self._later, None)

    @property
    def is_at_boundary(self) -> bool:
        """Whether its course may change now."""
        if self.is_over:
            return True
        begins, first = self.latents.missing(self.round), self.schedule.first_frame
        return bool(begins) and begins[0] >= first // self.latents.geometry.frames_per_chunk

    @property
    def is_mid_chunk(self) -> bool:
        """Whether a chunk has begun that is not finished."""
        return not self.is_at_boundary

    @property
    def due_prompt(self) -> LaterPrompt | None:
        """The later prompt of its request that takes over at the boundary where the job is now."""
        later = self.request.later_prompts
        if not later or not self.is_at_boundary or self.is_over:
            return None
        first_chunk = self.schedule.chunk_from(later[0].first_frame, self.latents.geometry.frames_per_chunk)
        return later[0] if self.latents.missing(self.round)[0] >= first_chunk else None

    @property
    def num_tokens(self) -> int:
        """Tokens of the round that runs next, all ranges together."""
        return self.round.num_frames * self.latents.geometry.tokens_per_frame

    @property
    def priority(self) -> int:
        """That of its request."""
        return self.request.priority

    @property
    def has_unseen_frames(self) -> bool:
        """Whether its last finished chunk has frames beyond the end that the video had until now."""
        size, first = self.latents.geometry.frames_per_chunk, self.schedule.first_frame
        num_made = -(-(first + self.num_frames_out) // size) * size - first
        return 0 < self.num_frames_out < min(num_made, self.request.num_frames)

    def begin_round(self, model: VideoModel) -> None:
        """Makes the latents of the chunks that `round` is the first to carry. Raises what the model raises."""
        self.latents.begin(self.round, lambda chunk: model.initial_latents(self.condition, self.request.seed, chunk))

    def open_stream(self) -> Stream:
        """The stream of a job that is not swapped out."""
        assert self.stream is not None
        return self.stream

    def note_stored(self, shape: KVShape, committed: Sequence[tuple[int, Tensor]]) -> None:
        """After a commit pass: keeps the latents of what was stored, [T, C] by index, as long as the stream keeps the
        chunk, and raises `peak_bytes` to what it holds now, if that is more."""
        chunks = list(self.open_stream().chunks())
        stored = sum(shape.stored_bytes(chunk.num_tokens, chunk.codecs) for chunk in chunks)
        bf16 = sum(shape.bf16_bytes(chunk.num_tokens) for chunk in chunks)
        self.peak_bytes = max(self.peak_bytes, (stored, bf16))
        kept = {chunk.index for chunk in chunks}
        self.clean = {index: latents for index, latents in [*self.clean.items(), *committed] if index in kept}


def commit_ranges(schedule: Schedule, num_rounds: int) -> dict[int, list[Range]]:
    """The ranges that stored each committed chunk in the first rounds, one for each branch, by order of commit."""
    stored: dict[int, list[Range]] = {}
    counts: dict[str, int] = {}
    for round_ in islice(schedule.rounds(), num_rounds):
        for part in round_.ranges:
            if part.commits:
                index = counts.get(part.branch, 0)
                stored.setdefault(index, []).append(part)
                counts[part.branch] = index + 1
    return stored


def check_stored_alone(schedule: Schedule, request_id: str) -> None:
    """Raises StateError for a schedule some of whose chunks are stored together with others: they cannot be stored
    again under another prompt."""
    if any(part.sees for round_ in schedule.rounds() for part in round_.ranges if part.commits):
        raise StateError(
            f"chunks of video {request_id!r} cannot be stored again, because they are stored in a pass over several "
            "chunks; change its prompts without recache"
        )
