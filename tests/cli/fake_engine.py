"""An engine without a model: plain frames in the colour that the prompt names, and failures on demand.

It behaves like `pagedvid.engine.engine.Engine` towards the command line, in milliseconds. Words of a prompt:
a colour (needed), `noise` (frames that do not compress), `breaks` (fails at its second chunk), `huge` (fits no memory).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stats import CacheStats
from pagedvid.cache.window import Window
from pagedvid.engine.requests import (
    ChunkOutput,
    EngineOutput,
    EngineStats,
    RequestFailure,
    VideoRequest,
    VideoStatus,
)
from pagedvid.engine.states import RUNNING, WAITING
from pagedvid.errors import CapacityError, ConfigError, NonFiniteError, PromptError

COLORS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230)}
FRAMES_PER_CHUNK = 4
SIZE = 16
STORED_BYTES, BF16_BYTES = 148_000, 1_000_000


@dataclass
class FakeEngine:
    """Every step finishes one chunk of each of at most two running videos."""

    step_seconds: float = 0.0

    def __post_init__(self) -> None:
        geometry = SimpleNamespace(frames_per_chunk=FRAMES_PER_CHUNK)
        self.model = SimpleNamespace(name="fake", geometry=geometry, frames_per_second=8.0)
        self.cache = SimpleNamespace(stats=self._pool, spec=CacheSpec(1, 1, 128))
        self.window = Window(1, 2)
        self.host_memory = SimpleNamespace(num_bytes=0)
        self.pace = SimpleNamespace(token_seconds=None)
        self.latest_batch: tuple[str, ...] = ()
        self.is_closed = False
        self.submitted: list[VideoRequest] = []
        self._chunks_done: dict[str, int] = {}
        self._active: dict[str, VideoRequest] = {}

    def check(self, request: VideoRequest) -> None:
        if "huge" in request.prompt:
            raise CapacityError("needs 500 pages at its peak; the whole pool has 100")
        if not any(color in request.prompt for color in COLORS):
            raise PromptError(f"no word of the prompt {request.prompt!r} is known")

    def submit(self, request: VideoRequest) -> None:
        self.check(request)
        self.submitted.append(request)
        self._active[request.id] = request
        self._chunks_done[request.id] = 0

    @property
    def has_work(self) -> bool:
        return bool(self._active)

    def step(self) -> list[EngineOutput]:
        time.sleep(self.step_seconds)
        batch = list(self._active.values())[:2]
        self.latest_batch = tuple(request.id for request in batch)
        return [self._next_chunk(request) for request in batch]

    def _next_chunk(self, request: VideoRequest) -> EngineOutput:
        index = self._chunks_done[request.id]
        if "breaks" in request.prompt and index == 1:
            del self._active[request.id]
            return RequestFailure(request.id, NonFiniteError("NaN among the keys of layer 3, head 1"))
        num_frames = min(FRAMES_PER_CHUNK, request.num_frames - index * FRAMES_PER_CHUNK)
        self._chunks_done[request.id] += 1
        is_last = (index + 1) * FRAMES_PER_CHUNK >= request.num_frames
        if is_last:
            del self._active[request.id]
        return ChunkOutput(request.id, index, frames_of(request, num_frames), is_last, STORED_BYTES, BF16_BYTES)

    def cancel(self, request_id: str) -> None:
        if request_id not in self._active:
            raise ConfigError(f"request {request_id!r} is neither waiting nor running")
        del self._active[request_id]

    def close(self) -> None:
        self._active.clear()
        self.is_closed = True

    def videos(self) -> tuple[VideoStatus, ...]:
        return tuple(self._status(request) for request in self._active.values())

    def stats(self) -> EngineStats:
        return EngineStats(0, len(self._active), 0, 0, sum(self._chunks_done.values()), 0, 0, 0.0, 0.0, 0, 0, 0, 0)

    def _status(self, request: VideoRequest) -> VideoStatus:
        num_frames_out = self._chunks_done[request.id] * FRAMES_PER_CHUNK
        return VideoStatus(
            id=request.id,
            state=RUNNING if num_frames_out else WAITING,
            prompt=request.prompt,
            num_frames=request.num_frames,
            num_frames_out=num_frames_out,
            num_output_frames=num_frames_out,
            is_live=False,
            credit_seconds=None,
            own_pages=10,
            shared_pages=0,
            host_bytes=0,
        )

    def _pool(self) -> CacheStats:
        num_streams = min(2, len(self._active))
        return CacheStats(
            num_pages=100,
            pages_used=10 * num_streams,
            pages_peak=20,
            pages_reserved=10 * num_streams,
            page_bytes=4608,
            num_streams=num_streams,
            num_chunks=num_streams,
            num_shared_chunks=0,
            pages_shared=0,
            num_evicted_chunks=0,
            stored_bytes=STORED_BYTES * num_streams,
            bf16_bytes=BF16_BYTES * num_streams,
            padding_waste_ratio=0.125,
        )


def frames_of(request: VideoRequest, num_frames: int) -> np.ndarray:
    """uint8 [num_frames, SIZE, SIZE, 3]"""
    shape = (num_frames, SIZE, SIZE, 3)
    if "noise" in request.prompt:
        return np.random.default_rng(request.seed).integers(0, 256, shape, dtype=np.uint8)
    color = next(rgb for name, rgb in COLORS.items() if name in request.prompt)
    return np.broadcast_to(np.array(color, dtype=np.uint8), shape).copy()


class KillingEngine(FakeEngine):
    """The word `kills` in a prompt ends the process."""

    def step(self) -> list[EngineOutput]:
        if any("kills" in request.prompt for request in self._active.values()):
            os._exit(1)
        return super().step()
