"""An engine without a model that keeps the promises of `Engine` in microseconds.

A chunk takes three rounds: two denoise steps, after the second of which its frames are out, and a commit pass. Frames
depend on everything that made them: seed, and the prompt of every chunk so far. Words of a prompt: "fails@2" ends that
video at chunk 2, "refused" is accepted and refused at the chunk boundary. `step` calls `fault`, which may raise.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stats import CacheStats
from pagedvid.cache.window import Window
from pagedvid.engine.requests import (
    ChunkOutput,
    Continuation,
    EngineOutput,
    EngineStats,
    PromptRefused,
    RequestFailure,
    VideoRequest,
    VideoStatus,
)
from pagedvid.engine.snapshot import JobSnapshot
from pagedvid.engine.states import FINISHED, PAUSED, RUNNING, WAITING
from pagedvid.errors import CapacityError, ConfigError, PromptError, StateError

FRAMES_PER_CHUNK = 4
ROUNDS_PER_CHUNK = 3


def frames_of(
    seed: int, prompts: Sequence[str], num_frames: int | None = None, then: Sequence[tuple[int, str]] = ()
) -> np.ndarray:
    """uint8 [frames, 2, 2, 3] of a video whose chunks had these prompts, and those behind them these seeds and prompts:
    what any engine must make of it."""
    digest, chunks = 0, []
    for chunk_seed, prompt in [*((seed, prompt) for prompt in prompts), *then]:
        digest = next_digest(digest, chunk_seed, prompt)
        chunks.append(chunk_frames(digest, FRAMES_PER_CHUNK))
    return np.concatenate(chunks)[:num_frames]


def next_digest(digest: int, seed: int, prompt: str) -> int:
    return zlib.crc32(f"{digest} {seed} {prompt}".encode())


def chunk_frames(digest: int, num_frames: int) -> np.ndarray:
    return np.random.default_rng(digest).integers(0, 256, (FRAMES_PER_CHUNK, 2, 2, 3), dtype=np.uint8)[:num_frames]


@dataclass
class FakeVideo:
    request: VideoRequest
    state: str = WAITING
    digest: int = 0
    num_rounds: int = 0
    num_frames_out: int = 0
    is_paused: bool = False
    changes: list[str | Continuation] = field(default_factory=list)
    frames_played: int | None = None

    @property
    def is_at_boundary(self) -> bool:
        return self.num_rounds % ROUNDS_PER_CHUNK == 0

    @property
    def is_over(self) -> bool:
        return self.num_frames_out >= self.request.num_frames and self.is_at_boundary


class FakeEngine:
    """At most two videos run at once."""

    def __init__(self, fault: Callable[[FakeEngine], None] = lambda engine: None) -> None:
        self.videos_by_id: dict[str, FakeVideo] = {}
        self.fault = fault
        self.num_steps = 0
        self.latest_batch: tuple[str, ...] = ()
        self.one_at_a_time = False
        self.is_closed = False
        self.model, self.window = SimpleNamespace(name="fake"), Window(1, 2)
        self.cache = SimpleNamespace(stats=self._pool, spec=CacheSpec(1, 1, 128))
        self.host_memory = SimpleNamespace(num_bytes=0)
        self.pace = SimpleNamespace(token_seconds=None)

    # ------------------------------------------------------------------ verbs

    def check(self, request: VideoRequest) -> None:
        self._check_prompt(request.prompt)
        if request.num_frames > 1000:
            raise CapacityError("needs 500 pages at its peak; the pool has 100")
        if request.id in self.videos_by_id:
            raise ConfigError(f"request {request.id!r} is still waiting or running")

    def submit(self, request: VideoRequest) -> None:
        self.check(request)
        self.videos_by_id[request.id] = FakeVideo(request)

    def cancel(self, id: str) -> None:
        for video in self.videos_by_id.values():
            for change in video.changes:
                if isinstance(change, Continuation) and change.id == id:  # a fork that has not begun
                    video.changes.remove(change)
                    return
        self._video(id)
        del self.videos_by_id[id]

    def pause(self, id: str) -> None:
        self._video(id).is_paused = True

    def resume(self, id: str) -> None:
        self._video(id).is_paused = False

    def prompt(self, id: str, prompt: str, *, recache: bool = False) -> None:
        self._check_prompt(prompt)
        video = self._video(id)
        video.changes.append(prompt)
        if video.is_at_boundary:
            self._change(video)

    def fork(self, id: str, continuations: Sequence[Continuation]) -> None:
        video = self._video(id)
        for continuation in continuations:
            self._request_of(video, continuation)
        video.changes += continuations
        if video.is_at_boundary:
            self._change(video)

    def extend(self, id: str, num_frames: int) -> None:
        video = self._video(id)
        if num_frames <= video.request.num_frames:
            raise ConfigError("give more frames")
        video.request = replace(video.request, num_frames=num_frames)
        video.state = RUNNING if video.state == FINISHED else video.state

    def report_played(self, id: str, num_frames: int) -> None:
        video = self._video(id)
        if num_frames > video.num_frames_out:
            raise ConfigError(f"{num_frames} frames cannot have been played")
        video.frames_played = num_frames

    def checkpoint(self, id: str) -> JobSnapshot:
        video = self._video(id)
        return JobSnapshot(
            request=video.request,
            num_rounds_done=video.num_rounds,
            num_frames_out=video.num_frames_out,
            num_output_frames=video.num_frames_out,
            latents={},
            clean={},
            held={},
            decoder={"digest": torch.tensor(video.digest)},
            peak_bytes=(0, 0),
            image=None,
        )

    def restore(self, snapshot: JobSnapshot) -> None:
        self.submit(snapshot.request)
        video = self.videos_by_id[snapshot.request.id]
        video.num_rounds, video.num_frames_out = snapshot.num_rounds_done, snapshot.num_output_frames
        video.digest = int(snapshot.decoder["digest"])
        if video.is_over:
            video.state = FINISHED

    def close(self) -> None:
        self.videos_by_id.clear()
        self.is_closed = True

    # ------------------------------------------------------------------ steps

    @property
    def has_work(self) -> bool:
        return any(not self._rests(video) for video in self.videos_by_id.values())

    def step(self) -> list[EngineOutput]:
        self.num_steps += 1
        active = [video for video in self.videos_by_id.values() if not self._rests(video)]
        active = active[: 1 if self.one_at_a_time else 2]
        self.latest_batch = tuple(video.request.id for video in active)
        for video in active:
            video.state = RUNNING
        self.fault(self)
        return [output for video in active for output in self._round(video)]

    def _round(self, video: FakeVideo) -> list[EngineOutput]:
        request, outputs = video.request, []
        chunk, round_of_chunk = divmod(video.num_rounds, ROUNDS_PER_CHUNK)
        if round_of_chunk == 0:
            video.digest = next_digest(video.digest, request.seed, request.prompt)
        video.num_rounds += 1
        if round_of_chunk == 1:
            if f"fails@{chunk}" in request.prompt:
                del self.videos_by_id[request.id]
                return [RequestFailure(request.id, FloatingPointError("broke"))]
            num_frames = min(FRAMES_PER_CHUNK, request.num_frames - video.num_frames_out)
            video.num_frames_out += num_frames
            is_last = video.num_frames_out == request.num_frames
            outputs.append(ChunkOutput(request.id, chunk, chunk_frames(video.digest, num_frames), is_last, 10, 70))
            if is_last and not request.keep:
                del self.videos_by_id[request.id]
        if video.is_at_boundary:
            outputs += self._change(video)
        if video.is_over and request.id in self.videos_by_id:
            video.state = FINISHED
        return outputs

    def _change(self, video: FakeVideo) -> list[EngineOutput]:
        failures: list[EngineOutput] = []
        for change in video.changes:
            if isinstance(change, str) and "refused" in change:
                failures.append(PromptRefused(video.request.id, change, False, CapacityError("needs 8 pages")))
                continue
            if isinstance(change, str):
                video.request = replace(video.request, prompt=change)
                continue
            try:
                request = self._request_of(video, change)
            except ConfigError as error:
                failures.append(RequestFailure(change.id, error))
                continue
            state = RUNNING if video.num_rounds else WAITING
            twin = replace(video, request=request, changes=[], state=state, is_paused=False, frames_played=None)
            self.videos_by_id[change.id] = twin
        video.changes = []
        return failures

    def _request_of(self, video: FakeVideo, continuation: Continuation) -> VideoRequest:
        request = continuation.request_after(video.request)
        if request.num_frames <= video.num_frames_out:
            raise ConfigError(f"the video has {video.num_frames_out} frames; give its continuation more than that")
        return request

    # ------------------------------------------------------------------ what there is

    def videos(self) -> tuple[VideoStatus, ...]:
        forks = [
            replace(self._status(fork.id, FakeVideo(self._request_of(video, fork))), source_id=id)
            for id, video in self.videos_by_id.items()
            for fork in video.changes
            if isinstance(fork, Continuation)
        ]
        return (*(self._status(id, video) for id, video in self.videos_by_id.items()), *forks)

    def stats(self) -> EngineStats:
        return EngineStats(0, len(self.videos_by_id), 0, 0, 0, 0, self.num_steps, 0.0, 0.0, 0, 0, 0, 0)

    def _status(self, id: str, video: FakeVideo) -> VideoStatus:
        request = video.request
        is_resting = video.is_paused and video.is_at_boundary and video.state != FINISHED
        return VideoStatus(
            id=id,
            state=PAUSED if is_resting else video.state,
            prompt=request.prompt,
            num_frames=request.num_frames,
            num_frames_out=video.num_frames_out,
            num_output_frames=video.num_frames_out,
            is_live=request.live_frames_per_second is not None,
            credit_seconds=None,
            own_pages=1,
            shared_pages=0,
            host_bytes=0,
        )

    def _pool(self) -> CacheStats:
        used = len(self.videos_by_id)
        return CacheStats(100, used, used, 2 * used, 4608, used, used, 0, 0, 0, 10 * used, 70 * used, 0.0)

    def _rests(self, video: FakeVideo) -> bool:
        return video.state == FINISHED or (video.is_paused and video.is_at_boundary)

    def _video(self, id: str) -> FakeVideo:
        if any(
            isinstance(it, Continuation) and it.id == id for other in self.videos_by_id.values() for it in other.changes
        ):
            raise StateError(f"video {id!r} begins at the next chunk boundary of the video that it continues")
        if id not in self.videos_by_id:
            raise ConfigError(f"request {id!r} is neither waiting nor running")
        return self.videos_by_id[id]

    def _check_prompt(self, prompt: str) -> None:
        if "unknown" in prompt:
            raise PromptError(f"no word of the prompt {prompt!r} is known")


class MemoryFiles:
    """Checkpoint files that are not on disk."""

    def __init__(self) -> None:
        self.files: dict[Path, JobSnapshot] = {}

    def write(self, snapshot: JobSnapshot, path: Path) -> None:
        if "full" in path.name:
            raise OSError(28, "No space left on device")
        self.files[path] = snapshot

    def read(self, path: Path) -> JobSnapshot:
        if path not in self.files:
            raise ConfigError(f"{path} is no checkpoint")
        return self.files[path]
