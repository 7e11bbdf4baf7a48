"""The same videos with any cache: through the engine, or with a history of one's choice."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caches import Caches, Case
from forced_run import ForcedRun, Generated, Request
from pagedvid.cache.window import Window
from pagedvid.config.sections import CacheConfig
from pagedvid.engine.engine import Engine
from pagedvid.engine.protocol import VideoModel
from pagedvid.engine.requests import ChunkOutput, EngineSettings, VideoRequest
from pagedvid.paged_kv_cache import PagedKVCache

COMPARED_CHUNKS = (1, 2)
"""The first two that read quantized pages; later ones diverge chaotically and say nothing."""


@dataclass(frozen=True)
class Lab:
    """Runs the same videos with any cache."""

    model: VideoModel
    requests: Sequence[Request]
    num_frames: int
    num_denoise_steps: int
    weights: Path | None = None
    """The model's folder; None: the shipped one."""

    @property
    def window(self) -> Window:
        """The default one."""
        return Window(CacheConfig().sink_chunks, CacheConfig().recent_chunks, positions=self.model.positions)

    @property
    def caches(self) -> Caches:
        """Caches for these videos."""
        return Caches(self.model.geometry, self.window, self.weights)

    @property
    def num_chunks(self) -> int:
        """Chunks of a video."""
        return -(-self.num_frames // self.model.geometry.frames_per_chunk)

    def cache(self, case: Case) -> PagedKVCache:
        """An empty cache with room for all videos."""
        return self.caches.new(case, len(self.requests))

    def engine_frames(self, cache: PagedKVCache) -> np.ndarray:
        """What a user gets: uint8 [videos, frames, H, W, 3]. Raises the error of the first video that fails."""
        settings = EngineSettings(num_denoise_steps=self.num_denoise_steps)
        engine = Engine(self.model, cache, self.window, settings)
        for number, request in enumerate(self.requests):
            engine.submit(VideoRequest(str(number), request.prompt, self.num_frames, request.seed))
        videos: list[list[np.ndarray]] = [[] for _ in self.requests]
        for output in engine.run():
            if not isinstance(output, ChunkOutput):
                raise output.error
            videos[int(output.request_id)].append(output.frames)
        return np.stack([np.concatenate(chunks) for chunks in videos])

    def forced(self, cache: PagedKVCache) -> ForcedRun:
        """A run over the compared chunks whose history can be given."""
        num_chunks = max(COMPARED_CHUNKS) + 1
        return ForcedRun(self.model, cache, self.window, self.requests, num_chunks, self.num_denoise_steps)

    def compared(self, videos: np.ndarray) -> np.ndarray:
        """The frames of the compared chunks, [videos, frames, H, W, 3]."""
        size = self.model.geometry.frames_per_chunk
        return videos[:, size * COMPARED_CHUNKS[0] : size * (COMPARED_CHUNKS[-1] + 1)]


def note(text: object) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def frames_of(made: Generated) -> np.ndarray:
    """All frames, [videos, frames, H, W, 3]."""
    return np.concatenate(made.frames, axis=1)
