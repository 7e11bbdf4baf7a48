"""Where each video of an engine is, read off its roster and its cache."""

from __future__ import annotations

from dataclasses import replace

from pagedvid.engine.job import Job
from pagedvid.engine.requests import VideoRequest, VideoStatus
from pagedvid.engine.roster import Roster, pending_forks
from pagedvid.engine.states import FINISHED, PAUSED, RUNNING, SWAPPED, WAITING
from pagedvid.paged_kv_cache import PagedKVCache


def statuses(roster: Roster, cache: PagedKVCache, now: float) -> tuple[VideoStatus, ...]:
    """All videos: those that have begun, then those that wait, among them forks that their source has not made yet."""
    forks = [
        replace(_of_waiting(fork.request_after(source.request), WAITING), source_id=source.request.id)
        for source in roster.holders()
        for fork in pending_forks(source)
    ]
    return (
        *(_of_job(job, cache, now) for job in roster.jobs.values()),
        *(_of_waiting(entry.request, WAITING) for entry in roster.waiting),
        *forks,
        *(_of_waiting(entry.request, PAUSED) for entry in roster.parked.values()),
    )


def state_of(job: Job) -> str:
    """The state of a job, one of `states.STATES`."""
    if job.is_over:
        return FINISHED
    if job.is_paused and job.is_at_boundary:
        return PAUSED
    return RUNNING if job.stream is not None else SWAPPED


def _of_job(job: Job, cache: PagedKVCache, now: float) -> VideoStatus:
    own_pages, shared_pages = (0, 0) if job.stream is None else cache.own_and_shared_pages(job.stream)
    return VideoStatus(
        id=job.request.id,
        state=state_of(job),
        prompt=job.request.prompt,
        num_frames=job.request.num_frames,
        num_frames_out=job.num_frames_out,
        num_output_frames=job.num_output_frames,
        is_live=job.playout is not None,
        credit_seconds=None if job.playout is None else job.playout.credit_seconds(now),
        own_pages=own_pages,
        shared_pages=shared_pages,
        host_bytes=0 if job.image is None else job.image.num_bytes,
    )


def _of_waiting(request: VideoRequest, state: str) -> VideoStatus:
    is_live = request.live_frames_per_second is not None
    return VideoStatus(request.id, state, request.prompt, request.num_frames, 0, 0, is_live, None, 0, 0, 0)
