"""Which videos have their pages in the pool: who begins, who is swapped out to host memory, who returns.

Whole streams move, at chunk boundaries, when others wait for pages: first those that are paused, then finished ones
that are kept, then live ones that are far ahead of their viewers. Their bytes come back as they were. What begins or
returns does so in order of arrival; the first that does not fit waits, and so do all behind it.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress

from pagedvid.cache.host_memory import HostMemory
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_image import StreamImage
from pagedvid.engine.counters import Counters
from pagedvid.engine.job import Job
from pagedvid.engine.planning import Plan, Planner, Waiting
from pagedvid.engine.requests import EngineOutput
from pagedvid.engine.roster import Roster
from pagedvid.engine.scheduler import FAR_AHEAD_SECONDS, admit_in_order
from pagedvid.engine.snapshot import progress_of, take_up
from pagedvid.errors import CapacityError

logger = logging.getLogger(__name__)


class Residency:
    """Moves the videos of a roster in and out of the pool."""

    def __init__(
        self,
        planner: Planner,
        roster: Roster,
        host_memory: HostMemory,
        max_concurrent: int | None,
        counters: Counters,
    ) -> None:
        """`max_concurrent`: most videos that are worked on at once; None: as many as the memory holds."""
        self.host_memory = host_memory
        self._planner, self._roster, self._max_concurrent = planner, roster, max_concurrent
        self._counters = counters
        self._cache = planner.cache

    def admit(self) -> list[EngineOutput]:
        """Lets videos begin and return while there is room. Returns those that failed on the way."""
        returning = deque(job for job in self.swapped() if not _is_far_ahead(job))
        for job in admit_in_order(returning, self._can_return):
            self._swap_in(job)
        failures = [] if returning else self._begin_waiting()
        for job in [] if returning or self._roster.waiting else self.swapped():
            if self._has_slot() and self._fits(job):  # far ahead: nobody else wants the room
                self._swap_in(job)
        return failures

    def runnable(self) -> list[Job]:
        """The jobs that can take part in a step."""
        return [
            job
            for job in self._roster.jobs.values()
            if job.stream is not None and not job.is_over and not (job.is_paused and job.is_at_boundary)
        ]

    def leave(self, job: Job) -> None:
        """Ends a job: its pages, or its bytes in host memory, are free at once."""
        self._roster.forget_job(job)
        if job.stream is not None:
            self._cache.release(job.stream)
        if job.image is not None:
            self.host_memory.give_back(job.image.num_bytes)

    def twin(self, job: Job, plan: Plan) -> Job:
        """A job that goes on from the same history by another plan, at a chunk boundary. It shares the pages of one
        that is in the pool, and begins swapped out where the pool has no room for it.

        Raises CapacityError when there is no room in host memory either.
        """
        twin = self._planner.new_job(plan, self._roster.next_number(), self._planner.clock(), job.num_output_frames)
        take_up(twin, progress_of(job), self._cache.device)
        if job.image is not None:
            self.host_memory.take(job.image.num_bytes)
            twin.image = plan.lengthened(job.image)
        else:
            self._share(job.open_stream(), twin, plan)
        self._roster.begin(twin)
        return twin

    def _share(self, stream: Stream, twin: Job, plan: Plan) -> None:
        try:
            twin.stream = self._fork(stream, plan)
        except CapacityError:
            with suppress(CapacityError):
                twin.image = plan.lengthened(self._copy_out(stream))
            if twin.image is None:
                raise

    def _fork(self, stream: Stream, plan: Plan) -> Stream:
        fork = self._cache.fork(stream)
        try:
            self._planner.extend(fork, plan)
        except BaseException:
            self._cache.release(fork)
            raise
        return fork

    # ------------------------------------------------------------------ beginning

    def _begin_waiting(self) -> list[EngineOutput]:
        failures: list[EngineOutput] = []
        for entry in admit_in_order(self._roster.waiting, self._can_begin):
            try:
                self._roster.begin(self._begin(entry))
            except Exception as error:
                failures.append(self._roster.failure(entry.request.id, error))
                self._roster.end_forks(entry)
        return failures

    def _begin(self, entry: Waiting) -> Job:
        """The job of a waiting video. Raises what model and cache raise.

        Its pages are taken last, so that nothing is taken when the model raises.
        """
        snapshot = entry.snapshot
        num_frames_seen = 0 if snapshot is None else snapshot.num_output_frames
        job = self._planner.new_job(entry.plan, self._roster.next_number(), entry.since, num_frames_seen)
        if snapshot is not None:
            take_up(job, snapshot, self._cache.device)
        job.changes += entry.changes
        if snapshot is None or snapshot.image is None:
            job.stream = self._planner.open(entry.plan)
        else:
            job.stream = self._cache.copy_in(self._planner.completed(snapshot.image, job))
        return job

    def _can_begin(self, entry: Waiting) -> bool:
        to_recache = entry.num_pages if entry.request.recaches else 0
        return self._has_slot() and self._room_for(entry.num_pages + max(to_recache, self._pages_to_recache()))

    def _has_slot(self) -> bool:
        return self._max_concurrent is None or len(self.runnable()) < self._max_concurrent

    # ------------------------------------------------------------------ swapping

    def swapped(self) -> list[Job]:
        """The swapped videos that could go on, in order of arrival."""
        jobs = self._roster.jobs.values()
        swapped = [job for job in jobs if job.stream is None and not job.is_over and not job.is_paused]
        return sorted(swapped, key=lambda job: job.number)

    def _can_return(self, job: Job) -> bool:
        return self._has_slot() and self._room_for(self._pages_of(job) + self._pages_to_recache())

    def _fits(self, job: Job) -> bool:
        """Whether a swapped job can return without anybody making room."""
        return self._cache.fits(self._pages_of(job) + self._pages_to_recache())

    def _pages_to_recache(self) -> int:
        """What is kept free for jobs whose schedule of prompts stores chunks again: the second copy of the largest of
        them, because they do it one after the other."""
        recaching = [job for job in self._roster.jobs.values() if job.request.recaches and not job.is_over]
        peaks = [self._pages_of(job) if job.stream is None else job.stream.peak_pages for job in recaching]
        return max(peaks, default=0)

    def _pages_of(self, job: Job) -> int:
        assert job.image is not None
        return self._cache.image_pages(job.image)

    def _room_for(self, num_pages: int) -> bool:
        """Whether so many pages can be promised now. Swaps out idle streams if it takes that and they are enough."""
        if self._cache.fits(num_pages):
            return True
        idle = self._idle()
        at_most = sum(job.open_stream().peak_pages for job in idle)
        if not self._cache.fits(num_pages - at_most):
            return False
        for job in idle:
            self._swap_out(job)
            if self._cache.fits(num_pages):
                return True
        return False

    def _idle(self) -> list[Job]:
        """Resident videos at a chunk boundary that nobody waits for now, the first to be swapped out first."""
        resident = [job for job in self._roster.jobs.values() if job.stream is not None and job.is_at_boundary]
        paused = [job for job in resident if job.is_paused]
        finished = [job for job in resident if job.is_over and not job.is_paused]
        ahead = [job for job in resident if _is_far_ahead(job) and not (job.is_paused or job.is_over)]
        return [*paused, *finished, *sorted(ahead, key=lambda job: -(job.credit_seconds or 0.0))]

    def _swap_out(self, job: Job) -> None:
        """Moves its pages to host memory, unless they do not fit there."""
        stream = job.open_stream()
        try:
            image = self._copy_out(stream)
        except CapacityError as error:
            logger.debug("video %s stays in the pool: %s", job.request.id, error)
            return
        self._cache.release(stream)
        job.stream, job.image = None, image

    def _copy_out(self, stream: Stream) -> StreamImage:
        """The stream's image, whose bytes are taken from host memory. Raises CapacityError where they do not fit, if
        possible before the copy."""
        num_pages = sum(self._cache.own_and_shared_pages(stream))
        self.host_memory.require(num_pages * self._cache.pool.page_bytes)
        image = self._cache.copy_out(stream)
        self.host_memory.take(image.num_bytes)
        self._counters.num_swaps_out += 1
        self._counters.swapped_out_bytes += image.num_bytes
        return image

    def _swap_in(self, job: Job) -> None:
        assert job.image is not None
        num_bytes = job.image.num_bytes
        job.stream = self._cache.copy_in(job.image)
        self.host_memory.give_back(num_bytes)
        job.image = None
        self._counters.num_swaps_in += 1
        self._counters.swapped_in_bytes += num_bytes


def _is_far_ahead(job: Job) -> bool:
    return job.credit_seconds is not None and job.credit_seconds > FAR_AHEAD_SECONDS
