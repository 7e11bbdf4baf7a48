"""The same videos with any cache: from the engine, or from a plain loop whose history can be chosen.

Lists over chunks hold one tensor for all videos, [videos * chunk_tokens, ...], packed in the order of the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.caches import Caches, Case
from pagedvid.attention.step import Step
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream import Stream
from pagedvid.cache.window import Window
from pagedvid.engine.engine import Engine
from pagedvid.engine.protocol import Attend, VideoModel
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.engine.schedule import Range
from pagedvid.paged_kv_cache import PagedKVCache

COMPARED_CHUNKS = (1, 2)
"""The first two that read quantized pages. Later ones diverge chaotically and say nothing."""


def engine_videos(engine: Engine, requests: Sequence[VideoRequest]) -> dict[str, np.ndarray]:
    """Frames that an engine makes, uint8 [frames, H, W, 3], by id. Raises the error of the first video that fails."""
    chunks: dict[str, list[np.ndarray]] = {request.id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    for output in engine.run():
        if not isinstance(output, ChunkOutput):
            raise output.error
        chunks[output.request_id].append(output.frames)
    return {id: np.concatenate(parts) for id, parts in chunks.items()}


@dataclass(frozen=True)
class Request:
    """One video."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Generated:
    """What a loop made."""

    latents: list[Tensor]
    """Clean latents by chunk."""
    frames: list[np.ndarray]
    """Frames by chunk, uint8 [videos, F, H, W, 3]."""

    def whole_videos(self) -> np.ndarray:
        """All frames, uint8 [videos, frames, H, W, 3]."""
        return np.concatenate(self.frames, axis=1)


@dataclass(frozen=True)
class VideoLoop:
    """A loop over the package's cache that keeps all videos of some requests in every forward.

    Unlike the engine, it can start late and put given chunks into the history ("teacher forcing"). For models with
    "cond" as their only branch, such as the demo model.
    """

    model: VideoModel
    cache: PagedKVCache
    window: Window
    requests: Sequence[Request]
    num_chunks: int
    num_denoise_steps: int

    def generate(self, history: Sequence[Tensor] | None = None, first_chunk: int = 0, num_given: int = 0) -> Generated:
        """Generates every chunk from `first_chunk` on; earlier chunks do not exist.

        `history`: clean latents by chunk, committed instead of the generated ones. Its first `num_given` chunks are
        committed only; the result begins after them.
        """
        streams = [self.cache.open(self.window, self.model.geometry.chunk_tokens) for _ in self.requests]
        conditions = [self.model.encode_prompt(request.prompt) for request in self.requests]
        decoders = [self.model.decoder(condition) for condition in conditions]
        made = Generated([], [])
        for given in [] if history is None else history[:num_given]:
            self._forward(streams, conditions, given, 0.0)
        for chunk in range(first_chunk + num_given, self.num_chunks):
            latents = self._denoise(streams, conditions, chunk)
            made.latents.append(latents)
            parts = zip(decoders, latents.chunk(len(streams)), strict=True)
            made.frames.append(np.stack([decode(part) for decode, part in parts]))
            if chunk < self.num_chunks - 1:
                stored = latents if history is None else history[chunk]
                self._forward(streams, conditions, stored, 0.0)
        for stream in streams:
            self.cache.release(stream)
        return made

    def _denoise(self, streams: list[Stream], conditions: list[object], chunk: int) -> Tensor:
        levels = self.model.noise_levels(self.num_denoise_steps)
        latents = torch.cat([self.model.initial_noise(request.seed, chunk) for request in self.requests])
        for level, next_level in pairwise(levels):
            prediction = self._forward(streams, conditions, latents, level)
            latents = self.model.advance(latents, {"cond": prediction}, level, next_level)
        return latents

    def _forward(self, streams: list[Stream], conditions: list[object], latents: Tensor, level: float) -> Tensor:
        """One packed forward; at noise level 0, the commit pass."""
        ranges = [Range(range(self.model.geometry.frames_per_chunk), level)] * len(conditions)
        with self.cache.step([QueryRange(stream, commit=level == 0.0) for stream in streams]) as step:
            return self.model.forward(latents, ranges, conditions, self._attend(step))

    def _attend(self, step: Step) -> Attend:
        def attend(layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
            return step.attend(layer, q_THD, k_THD, v_THD, self.model.rope)

        return attend


@dataclass(frozen=True)
class Lab:
    """Runs the same videos with any cache."""

    model: VideoModel
    requests: Sequence[Request]
    num_frames: int
    num_denoise_steps: int
    weights: Path | None = None
    """Folder of the model; None: the shipped one."""

    @property
    def window(self) -> Window:
        """The default window."""
        return Window(positions=self.model.positions)

    @property
    def caches(self) -> Caches:
        """Makes caches for the model."""
        return Caches(self.model.geometry, self.window, self.weights)

    @property
    def num_chunks(self) -> int:
        """Chunks of a video."""
        return -(-self.num_frames // self.model.geometry.frames_per_chunk)

    def cache(self, case: Case) -> PagedKVCache:
        """An empty cache with room for all videos."""
        return self.caches.new(case, len(self.requests))

    def engine_frames(self, cache: PagedKVCache) -> np.ndarray:
        """What a user would get, uint8 [videos, frames, H, W, 3]. Raises the error of the first video that fails."""
        engine = Engine(self.model, cache, self.window, num_denoise_steps=self.num_denoise_steps)
        requests = [
            VideoRequest(str(number), request.prompt, self.num_frames, request.seed)
            for number, request in enumerate(self.requests)
        ]
        return np.stack(list(engine_videos(engine, requests).values()))

    def loop(self, cache: PagedKVCache, num_chunks: int = COMPARED_CHUNKS[-1] + 1) -> VideoLoop:
        """A loop, unless told otherwise up to the last compared chunk, whose history can be given."""
        return VideoLoop(self.model, cache, self.window, self.requests, num_chunks, self.num_denoise_steps)

    def compared(self, videos: np.ndarray) -> np.ndarray:
        """The frames of the compared chunks, [videos, frames, H, W, 3]."""
        size = self.model.geometry.frames_per_chunk
        return videos[:, size * COMPARED_CHUNKS[0] : size * (COMPARED_CHUNKS[-1] + 1)]
