"""The engine: continuous batching of chunk steps. `step` is the whole loop.

Streams join and leave between any two steps; each is at its own chunk and noise level, and denoise steps of some share
a forward with commit passes of others. A chunk is yielded as soon as it is clean. The last chunk of a video has no
reader and is not committed. A video's frames do not depend on what ran beside it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.engine.admission import admit_in_order
from pagedvid.engine.job import Job
from pagedvid.engine.requests import (
    ChunkOutput,
    EngineOutput,
    EngineSettings,
    EngineStats,
    RequestFailure,
    VideoRequest,
)
from pagedvid.engine.scheduler import Candidate, next_batch
from pagedvid.errors import CapacityError, ConfigError, IntegrityError, NonFiniteError
from pagedvid.geometry import Window, peak_pages
from pagedvid.models.base import Piece, VideoModel
from pagedvid.paged_kv_cache import PagedKVCache

logger = logging.getLogger(__name__)


class Engine:
    """Generates many videos at once with one model and one cache."""

    def __init__(self, model: VideoModel, cache: PagedKVCache, window: Window, settings: EngineSettings) -> None:
        """Raises ConfigError when the window is longer than the model was trained on, or the cache made for another."""
        geometry, spec = model.geometry, cache.spec
        wanted = (geometry.num_layers, geometry.num_query_heads, geometry.num_kv_heads, geometry.head_dim)
        given = (spec.num_layers, spec.query_heads, spec.num_kv_heads, spec.head_dim)
        if wanted != given:
            raise ConfigError(
                f"the cache was made for {given} layers, query heads, KV heads and head_dim; {model.name} has {wanted}"
            )
        if window.positions == "window" and window.max_chunks + 1 > model.max_window_chunks:
            raise ConfigError(
                f"sink_chunks {window.sink_chunks} + recent_chunks {window.recent_chunks} + the current chunk exceed "
                f"the {model.max_window_chunks} chunks that {model.name} was trained on; lower one of them"
            )
        self.model = model
        self.cache = cache
        self.window = window
        self.settings = settings
        self._levels = model.noise_levels(settings.num_denoise_steps)
        self._waiting: deque[tuple[VideoRequest, object]] = deque()
        self._running: dict[int, Job] = {}
        self._peak_bytes: dict[str, tuple[int, int]] = {}
        self._num_started = self._num_finished = self._num_failed = self._num_chunks_done = self._num_steps = 0
        self._step_seconds = self._forward_seconds = 0.0

    # ------------------------------------------------------------------ the loop

    @torch.no_grad()
    def step(self) -> list[EngineOutput]:
        """One batched forward and what it finished. Returns [] while chunks are still noisy."""
        started = time.perf_counter()
        outputs = self._admit_waiting()
        batch = self._next_batch()
        if batch:
            outputs += self._run(batch)
        self._num_steps += 1
        if self.cache.spec.debug_checks:
            self.cache.check()
        self._step_seconds += time.perf_counter() - started
        return outputs

    def run(self) -> Iterator[EngineOutput]:
        """Steps until nothing is left, yielding each finished chunk and each failure at once."""
        while self.has_work:
            yield from self.step()

    # ------------------------------------------------------------------ requests

    @torch.no_grad()
    def submit(self, request: VideoRequest) -> None:
        """Queues a video. Raises PromptError, ConfigError, or CapacityError when it could not run even alone."""
        if request.num_frames < 1:
            raise ConfigError(f"request {request.id!r} asks for {request.num_frames} frames; at least 1")
        if request.id in self._peak_bytes:
            raise ConfigError(f"request id {request.id!r} was submitted before; ids must differ")
        condition = self.model.encode_prompt(request.prompt)
        needed = self._pages_of(request)
        if needed > self.cache.pool.num_pages:
            raise CapacityError(
                f"request {request.id!r} needs {needed} pages at its peak; the pool has {self.cache.pool.num_pages}. "
                "Give the cache more memory, use fewer bits or a shorter window."
            )
        self._peak_bytes[request.id] = (0, 0)
        self._waiting.append((request, condition))

    def cancel(self, request_id: str) -> None:
        """Drops a request, waiting or running; its pages are free at once. Unknown or finished ids: ConfigError."""
        for entry in self._waiting:
            if entry[0].id == request_id:
                self._waiting.remove(entry)
                return
        for job in self._running.values():
            if job.request.id == request_id:
                self._leave(job)
                return
        raise ConfigError(f"request {request_id!r} is neither waiting nor running")

    def close(self) -> None:
        """Cancels everything."""
        self._waiting.clear()
        for job in list(self._running.values()):
            self._leave(job)

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self._running)

    def request_bytes(self, request_id: str) -> tuple[int, int]:
        """(most bytes its stream held between two steps, the same tokens as dense bf16). Unknown id: ConfigError."""
        if request_id not in self._peak_bytes:
            raise ConfigError(f"request {request_id!r} was never submitted")
        return self._peak_bytes[request_id]

    def stats(self) -> EngineStats:
        """Where the engine stands; changes nothing."""
        return EngineStats(
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            num_finished=self._num_finished,
            num_failed=self._num_failed,
            num_chunks_done=self._num_chunks_done,
            num_steps=self._num_steps,
            forward_seconds=self._forward_seconds,
            step_seconds=self._step_seconds,
        )

    # ------------------------------------------------------------------ inside a step

    def _admit_waiting(self) -> list[EngineOutput]:
        """Opens streams in order of arrival while a slot and pages are free; the first that does not fit waits.

        Returns the requests that failed on the way. Raises CapacityError when nothing runs and nothing can start.
        """
        failures: list[EngineOutput] = []
        for request, condition in admit_in_order(self._waiting, self._can_start):
            try:
                job = self._start(request, condition)
            except Exception as error:
                failures.append(self._report(request, error))
            else:
                self._running[job.number] = job
        if self._waiting and not self._running and not failures:
            raise CapacityError(
                f"request {self._waiting[0][0].id!r} cannot start although no video is running: streams from outside "
                f"this engine hold {self.cache.reserved_pages} of {self.cache.pool.num_pages} pages. Release them."
            )
        return failures

    def _can_start(self, entry: tuple[VideoRequest, object]) -> bool:
        limit = self.settings.max_concurrent
        return (limit is None or len(self._running) < limit) and self.cache.fits(self._pages_of(entry[0]))

    def _start(self, request: VideoRequest, condition: object) -> Job:
        num_chunks, geometry = self._num_chunks(request), self.model.geometry
        latents = self.model.initial_noise(request.seed, 0)
        stream = self.cache.open(
            self.window, geometry.chunk_tokens, branches=geometry.branches, max_chunks=num_chunks - 1
        )
        number, self._num_started = self._num_started, self._num_started + 1
        return Job(number, request, condition, stream, num_chunks, self.settings.num_denoise_steps, latents)

    def _next_batch(self) -> list[Job]:
        cost = self.model.geometry.chunk_tokens * len(self.model.geometry.branches)
        candidates = [Candidate(job.number, job.last_step, cost) for job in self._running.values()]
        return [self._running[n] for n in next_batch(candidates, self.settings.policy, self.settings.max_batch_tokens)]

    def _run(self, batch: Sequence[Job]) -> list[EngineOutput]:
        """Runs a batch. If it fails, its jobs are run one by one, so that only the culprit fails."""
        try:
            predictions = self._forward(batch)
        except IntegrityError:
            raise  # the bookkeeping is wrong: no video is to blame, and none is safe
        except Exception as error:
            if len(batch) == 1:
                return [self._fail(batch[0], error)]
            logger.warning("a step of %d videos failed (%s); running them one by one", len(batch), error)
            return [output for job in batch for output in self._run([job])]
        return [
            output
            for job, prediction in zip(batch, predictions, strict=True)
            for output in self._advance(job, prediction)
        ]

    def _forward(self, batch: Sequence[Job]) -> list[dict[str, Tensor]]:
        """One packed forward of all branches of all jobs: each job's predictions by branch."""
        branches = self.model.geometry.branches
        ranges, pieces, latents = [], [], []
        for job in batch:
            for branch in branches:
                ranges.append(QueryRange(job.stream, branch, len(job.latents), commit=job.is_commit_due))
                pieces.append(Piece(len(job.latents), self._levels[job.step_index], branch, job.condition))
                latents.append(job.latents)
        with self.cache.step(ranges) as step:
            started = time.perf_counter()
            packed = self.model.forward(
                torch.cat(latents), pieces, lambda layer, q, k, v: step.attend(layer, q, k, v, self.model.rope)
            )
            self._forward_seconds += time.perf_counter() - started
            parts = iter(packed.split([piece.num_tokens for piece in pieces]))
        return [{branch: next(parts) for branch in branches} for _ in batch]

    def _advance(self, job: Job, predictions: dict[str, Tensor]) -> list[EngineOutput]:
        """Moves a job past the step that just ran; returns its chunk when that became clean."""
        job.last_step = self._num_steps
        try:
            if job.is_commit_due:
                self._note_bytes(job)
                self._begin_chunk(job, job.chunk_index + 1)
                return []
            level, next_level = self._levels[job.step_index : job.step_index + 2]
            job.latents = self.model.advance(job.latents, predictions, level, next_level)
            job.step_index += 1
            return [self._finish_chunk(job)] if job.is_commit_due else []
        except Exception as error:
            return [self._fail(job, error)]

    def _begin_chunk(self, job: Job, chunk_index: int) -> None:
        job.chunk_index, job.step_index = chunk_index, 0
        job.latents = self.model.initial_noise(job.request.seed, chunk_index)

    def _finish_chunk(self, job: Job) -> ChunkOutput:
        if not bool(torch.isfinite(job.latents).all()):
            raise NonFiniteError(
                f"chunk {job.chunk_index} of {job.request.id!r} has NaN or infinite latents after denoising"
            )
        frames = self.model.decode(job.latents)[: job.request.num_frames - job.num_frames_out]
        job.num_frames_out += len(frames)
        self._num_chunks_done += 1
        if job.is_last_chunk:
            self._leave(job)
            self._num_finished += 1
        return ChunkOutput(job.request.id, job.chunk_index, frames, job.is_last_chunk)

    def _fail(self, job: Job, error: Exception) -> RequestFailure:
        self._leave(job)
        return self._report(job.request, error)

    def _report(self, request: VideoRequest, error: Exception) -> RequestFailure:
        logger.error("video %s failed: %s", request.id, error)
        self._num_failed += 1
        return RequestFailure(request.id, error)

    def _leave(self, job: Job) -> None:
        self.cache.release(job.stream)
        del self._running[job.number]

    def _note_bytes(self, job: Job) -> None:
        shape = self.cache.spec.shape
        chunks = list(job.stream.chunks())
        stored = sum(shape.stored_bytes(chunk.num_tokens, chunk.codec) for chunk in chunks)
        bf16 = sum(shape.bf16_bytes(chunk.num_tokens) for chunk in chunks)
        self._peak_bytes[job.request.id] = max(self._peak_bytes[job.request.id], (stored, bf16))

    def _num_chunks(self, request: VideoRequest) -> int:
        return -(-request.num_frames // self.model.geometry.frames_per_chunk)

    def _pages_of(self, request: VideoRequest) -> int:
        """Pages that the request's stream will reserve."""
        geometry, spec = self.model.geometry, self.cache.spec
        per_branch = peak_pages(
            spec.shape, self.window, spec.codecs, geometry.chunk_tokens, self._num_chunks(request) - 1
        )
        return len(geometry.branches) * per_branch
