"""A request on its way through the engine: it waits, planned and checked; then it is a job with a stream and latents.

Axes: T tokens in (frame, row, column) order, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream import Stream
from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Decoder, ModelGeometry, VideoModel
from pagedvid.engine.requests import VideoRequest
from pagedvid.engine.schedule import Round, Schedule
from pagedvid.paged_kv_cache import PagedKVCache


@dataclass
class Latents:
    """The latents of one video by chunk.

    A chunk exists from the first round that carries one of its frames until it is forgotten.
    """

    geometry: ModelGeometry
    initial: Callable[[int], Tensor]
    """Chunk index -> initial latents, [chunk_tokens, C]."""
    chunks: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, round_: Round) -> None:
        """Makes the chunks that this round is the first to carry. Raises what `initial` raises."""
        size = self.geometry.frames_per_chunk
        for chunk in sorted({frame // size for part in round_.ranges for frame in part.frames}):
            if chunk not in self.chunks:
                self.chunks[chunk] = self.initial(chunk)

    def of(self, frames: Sequence[int]) -> Tensor:
        """Latents of these frames, concatenated, [T, C]; for a whole chunk its tensor, not a copy."""
        size, tokens = self.geometry.frames_per_chunk, self.geometry.tokens_per_frame
        chunk, first = divmod(frames[0], size)
        if first == 0 and list(frames) == list(range(frames[0], frames[0] + size)):
            return self.chunks[chunk]
        places = [divmod(frame, size) for frame in frames]
        return torch.cat([self.chunks[chunk][place * tokens : (place + 1) * tokens] for chunk, place in places])


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request that was accepted and has no stream yet."""

    request: VideoRequest
    condition: Any
    schedule: Schedule
    num_pages: int
    """What its stream will reserve."""


@dataclass(eq=False)
class Job:
    """The state of one running request. `stream` is its claim on the cache."""

    number: int
    """Order of arrival."""
    request: VideoRequest
    condition: Any
    stream: Stream
    first_frame: int
    """The first frame that is output; earlier ones were given."""
    latents: Latents
    decode: Decoder
    """The video's own decoder: it gets every latent frame that is output, in order."""
    later: Iterator[Round]
    """The rounds after `following`."""
    round: Round
    """The round that runs next."""
    following: Round | None
    """The one after it; None: `round` is the last."""
    held: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """Predictions of earlier rounds by chunk and role, which the chunk's next `Advance` uses."""
    last_step: int = -1
    """The engine step in which it last ran, -1 for never."""
    num_frames_out: int = 0
    """Latent frames that were decoded."""
    peak_bytes: tuple[int, int] = (0, 0)
    """(Most bytes that `stream` held between two steps, bytes of the same tokens as dense BF16.)"""

    @property
    def num_tokens(self) -> int:
        """Tokens of the round that runs next, all ranges together."""
        return self.round.num_frames * self.latents.geometry.tokens_per_frame

    def note_bytes(self, shape: KVShape) -> None:
        """Raises `peak_bytes` to what the stream holds now, if that is more."""
        chunks = list(self.stream.chunks())
        stored = sum(shape.stored_bytes(chunk.num_tokens, chunk.codecs) for chunk in chunks)
        bf16 = sum(shape.bf16_bytes(chunk.num_tokens) for chunk in chunks)
        self.peak_bytes = max(self.peak_bytes, (stored, bf16))

    def next_round(self) -> None:
        """Makes the following round the current one and its chunks ready. Raises what the initial latents raise."""
        assert self.following is not None
        self.round, self.following = self.following, next(self.later, None)
        self.latents.begin(self.round)


def plan(
    request: VideoRequest, model: VideoModel, cache: PagedKVCache, window: Window, num_denoise_steps: int | None
) -> Waiting:
    """The request's schedule and, from that alone, its pages. Raises what the model raises."""
    geometry = model.geometry
    condition = model.prepare(request.prompt, request.inputs, request.num_frames)
    schedule = model.schedule(condition, request.num_frames, num_denoise_steps, window)
    num_pages = cache.pages_needed(
        schedule.window,
        schedule.max_range_frames * geometry.tokens_per_frame,
        num_branches=len(geometry.branches),
        max_chunks=schedule.num_commits,
        commits=schedule.planned_commits(geometry.tokens_per_frame),
    )
    return Waiting(request, condition, schedule, num_pages)


def start(entry: Waiting, number: int, model: VideoModel, cache: PagedKVCache) -> Job:
    """The job of a waiting request. Raises what model and cache raise.

    The stream is opened last, so that nothing is taken when the model raises.
    """
    request, condition, schedule, geometry = entry.request, entry.condition, entry.schedule, model.geometry
    later = schedule.rounds()
    latents = Latents(geometry, lambda chunk: model.initial_latents(condition, request.seed, chunk))
    first, following = next(later), next(later, None)
    latents.begin(first)
    decode = model.decoder(condition)
    stream = cache.open(
        schedule.window,
        schedule.max_range_frames * geometry.tokens_per_frame,
        branches=geometry.branches,
        max_chunks=schedule.num_commits,
        commits=schedule.planned_commits(geometry.tokens_per_frame),
    )
    return Job(number, request, condition, stream, schedule.first_frame, latents, decode, later, first, following)
