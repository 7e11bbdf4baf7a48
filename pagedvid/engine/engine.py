"""The engine: continuous batching of the rounds of many videos. `step` is the whole loop.

The model says what a round is (engine/schedule.py). Streams join and leave between any two steps; each is at its own
round, and denoise steps of some share a forward with commit passes of others. A chunk is yielded as soon as it is
clean. Other videos in the same batch change a video's frames by rounding at most, and not at all in a reproducible
engine.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from pagedvid.arguments import instance_of, one_of, whole_number
from pagedvid.cache.window import Window
from pagedvid.engine.failures import described, presentable
from pagedvid.engine.forward import advance_chunks, finished_chunk, packed_forward
from pagedvid.engine.job import Job, Waiting, plan, start
from pagedvid.engine.protocol import VideoModel
from pagedvid.engine.requests import (
    EngineOutput,
    EngineStats,
    RequestFailure,
    VideoRequest,
)
from pagedvid.engine.scheduler import POLICIES, admit_in_order, next_batch
from pagedvid.errors import CapacityError, ConfigError, IntegrityError, ModelError, PagedvidError
from pagedvid.host_state import independent_of_host
from pagedvid.paged_kv_cache import PagedKVCache

logger = logging.getLogger(__name__)


class Engine:
    """Generates many videos at once with one model and one cache."""

    def __init__(
        self,
        model: VideoModel,
        cache: PagedKVCache,
        window: Window,
        *,
        max_batch_tokens: int = 2048,
        policy: str = "fcfs",
        max_concurrent: int | None = None,
        num_denoise_steps: int | None = None,
        reproducible: bool = False,
    ) -> None:
        """Raises ConfigError for a window longer than the model was trained on, and for a cache made for another model.

        `max_batch_tokens`: most packed tokens of one forward; a single video always runs. `policy`: one of
        `scheduler.POLICIES`. `max_concurrent`: most streams open at once; None: as many as the memory holds.
        `num_denoise_steps`: None: the model's own number. `reproducible`: each video has its forwards to itself, so
        that its frames are the same to the last bit whatever else runs. This holds on one machine with one number of
        threads, one backend and one size of scratch.
        """
        one_of(tuple(POLICIES), "policy", policy, ConfigError)
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
        self.max_batch_tokens = whole_number("max_batch_tokens", max_batch_tokens, 1, error=ConfigError)
        self.policy = policy
        self.max_concurrent = _whole_or_none("max_concurrent", max_concurrent)
        self.num_denoise_steps = _whole_or_none("num_denoise_steps", num_denoise_steps)
        self.reproducible = reproducible
        self._waiting: deque[Waiting] = deque()
        self._running: dict[int, Job] = {}
        self._ids: set[str] = set()  # of requests that are waiting or running
        self._num_started = self._num_finished = self._num_failed = self._num_chunks_done = self._num_steps = 0
        self._step_seconds = self._forward_seconds = 0.0

    # ------------------------------------------------------------------ the loop

    @independent_of_host
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

    @independent_of_host
    def submit(self, request: VideoRequest) -> None:
        """Queues a video. Raises PromptError, ConfigError, CapacityError when it would not fit even alone, and
        ModelError for any other error of the model."""
        instance_of(VideoRequest, "request", request, "VideoRequest('a', 'a red circle', 48)", ConfigError)
        if request.id in self._ids:
            raise ConfigError(f"request {request.id!r} is still waiting or running; use another id, or cancel it first")
        try:
            entry = plan(request, self.model, self.cache, self.window, self.num_denoise_steps)
        except PagedvidError:
            raise
        except Exception as error:
            raise ModelError(f"request {request.id!r} cannot be prepared: {described(error)}") from error
        needed = entry.num_pages
        if needed > self.cache.pool.num_pages:
            raise CapacityError(
                f"request {request.id!r} needs {needed} pages at its peak; the pool has {self.cache.pool.num_pages}. "
                "Give the cache more memory, use fewer bits or a shorter window."
            )
        self._ids.add(request.id)
        self._waiting.append(entry)

    def cancel(self, request_id: str) -> None:
        """Drops a request, waiting or running; its pages are free at once. Unknown or finished ids: ConfigError."""
        for entry in self._waiting:
            if entry.request.id == request_id:
                self._waiting.remove(entry)
                self._ids.discard(request_id)
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
        self._ids.clear()

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self._running)

    def stats(self) -> EngineStats:
        """The engine's counters; reading them changes nothing."""
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

    # ------------------------------------------------------------------ parts of a step

    def _admit_waiting(self) -> list[EngineOutput]:
        """Opens streams in order of arrival while a slot and pages are free; the first that does not fit waits.

        Returns the requests that failed on the way. Raises CapacityError when nothing runs and nothing can start.
        """
        failures: list[EngineOutput] = []
        for entry in admit_in_order(self._waiting, self._can_start):
            try:
                job = start(entry, self._num_started, self.model, self.cache)
            except Exception as error:
                self._ids.discard(entry.request.id)
                failures.append(self._report(entry.request, error))
            else:
                self._running[job.number] = job
                self._num_started += 1
        if self._waiting and not self._running and not failures:
            raise CapacityError(
                f"request {self._waiting[0].request.id!r} cannot start although no video is running: streams from "
                f"outside this engine hold {self.cache.reserved_pages} of {self.cache.pool.num_pages} pages. "
                "Release them."
            )
        return failures

    def _can_start(self, entry: Waiting) -> bool:
        has_slot = self.max_concurrent is None or len(self._running) < self.max_concurrent
        return has_slot and self.cache.fits(entry.num_pages)

    def _next_batch(self) -> list[Job]:
        # The shape of a product decides how it is rounded, and the videos that share a forward decide its shape.
        # A budget of one token keeps them apart, since one video always runs.
        budget = 1 if self.reproducible else self.max_batch_tokens
        return next_batch(self._running.values(), self.policy, budget)

    def _run(self, batch: Sequence[Job]) -> list[EngineOutput]:
        """Runs a batch. If it fails, its jobs are run one by one, so that only the culprit fails."""
        try:
            predictions, seconds = packed_forward(self.model, self.cache, batch)
        except IntegrityError:
            raise  # the bookkeeping itself is wrong, so no single video is at fault and none is safe
        except Exception as error:
            if len(batch) == 1:
                return [self._fail(batch[0], error)]
            logger.warning("a step of %d videos failed (%s); running them one by one", len(batch), described(error))
        else:
            self._forward_seconds += seconds
            return self._advance_all(batch, predictions)
        # Outside `except`: inside it, the error would keep the failed forward's tensors alive while the others run.
        return [output for job in batch for output in self._run([job])]

    def _advance_all(self, batch: Sequence[Job], predictions: Sequence[Sequence[Tensor]]) -> list[EngineOutput]:
        """Moves the jobs past the round that just ran; returns the chunks that became clean.

        An interrupt cancels the jobs and is raised again: what they stored is published, so the round cannot be
        repeated, and the chunks that became clean are lost.
        """
        try:
            return [
                output
                for job, prediction in zip(batch, predictions, strict=True)
                for output in self._advance(job, prediction)
            ]
        except BaseException:
            for job in batch:
                if job.number in self._running:
                    self._leave(job)
            raise

    def _advance(self, job: Job, predictions: Sequence[Tensor]) -> list[EngineOutput]:
        job.last_step, is_over = self._num_steps, job.following is None
        outputs: list[EngineOutput] = []
        try:
            advance_chunks(self.model, job, predictions)
            self._drop_chunks(job)
            outputs += [finished_chunk(self.model, job, chunk) for chunk in job.round.finished]
            self._num_chunks_done += len(job.round.finished)
            for chunk in job.round.forgets:
                del job.latents.chunks[chunk]
            if not is_over:
                job.next_round()
        except Exception as error:
            return [*outputs, self._fail(job, error)]
        if is_over:
            self._leave(job)
            self._num_finished += 1
        return outputs

    def _drop_chunks(self, job: Job) -> None:
        """Frees the pages that no later round reads, and records how many bytes are left."""
        if job.round.drops:
            self.cache.drop(job.stream, job.round.drops)
        if any(part.commits for part in job.round.ranges):
            job.note_bytes(self.cache.spec.shape)

    def _fail(self, job: Job, error: Exception) -> RequestFailure:
        self._leave(job)
        return self._report(job.request, error)

    def _report(self, request: VideoRequest, error: Exception) -> RequestFailure:
        logger.debug("where video %s failed", request.id, exc_info=error)
        error = presentable(error)
        logger.error("video %s failed: %s", request.id, error)
        self._num_failed += 1
        return RequestFailure(request.id, error)

    def _leave(self, job: Job) -> None:
        del self._running[job.number]
        self._ids.discard(job.request.id)
        self.cache.release(job.stream)


def _whole_or_none(name: str, value: int | None) -> int | None:
    """Raises ConfigError unless the value is None or a whole number of at least 1."""
    return None if value is None else whole_number(name, value, 1, error=ConfigError)
