"""Whether one more live video may begin: only if, as measured, those already playing would not stall."""

from __future__ import annotations

from collections.abc import Iterator

from pagedvid.engine.pace import LiveVideo, Pace, Work, refusal
from pagedvid.engine.planning import Plan
from pagedvid.engine.requests import VideoRequest
from pagedvid.engine.roster import Roster
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import OverloadError


def require_sustained(new: Plan, roster: Roster, pace: Pace) -> None:
    """Raises OverloadError for a live video that would make others stall.

    It is admitted while nothing is known: before the first steps and the first frames. Once admitted, a video has its
    share of the device until it ends, also while it is paused: resuming is never refused.
    """
    output_frames = sum(job.num_output_frames for job in roster.jobs.values())
    latent_frames = sum(job.num_frames_out for job in roster.jobs.values())
    if new.request.live_frames_per_second is None or not output_frames:
        return
    geometry = new.geometry

    def live(request: VideoRequest, schedule: Schedule) -> LiveVideo:
        assert request.live_frames_per_second is not None
        work = Work.of(schedule, geometry.frames_per_chunk, geometry.tokens_per_frame)
        speed = request.live_frames_per_second
        return LiveVideo(work, speed, speed * latent_frames / output_frames)

    admitted = [live(request, schedule) for request, schedule in _playing(roster)]
    if reason := refusal(pace, live(new.request, new.schedule), admitted):
        raise OverloadError(f"video {new.request.id!r} is refused: {reason}")


def _playing(roster: Roster) -> Iterator[tuple[VideoRequest, Schedule]]:
    """Live videos that have not ended."""
    every = [(job.request, job.schedule) for job in roster.jobs.values() if not job.is_over]
    every += [(entry.request, entry.plan.schedule) for entry in (*roster.waiting, *roster.parked.values())]
    yield from ((request, schedule) for request, schedule in every if request.live_frames_per_second is not None)
