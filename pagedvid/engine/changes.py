"""What changes a video's course: prompts and continuations, at its next chunk boundary, and its length, at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from pagedvid.arguments import whole_number
from pagedvid.engine.counters import Counters
from pagedvid.engine.failures import presentable
from pagedvid.engine.job import Change, Job, PromptChange
from pagedvid.engine.planning import Plan, Planner, Waiting
from pagedvid.engine.recache import recached
from pagedvid.engine.requests import Continuation, EngineOutput, PromptRefused, VideoRequest
from pagedvid.engine.residency import Residency
from pagedvid.engine.roster import Roster
from pagedvid.errors import ConfigError

logger = logging.getLogger(__name__)


class Changes:
    """Accepts and makes the changes of the videos on a roster. `Engine` documents what they do and raise."""

    def __init__(
        self,
        planner: Planner,
        roster: Roster,
        residency: Residency,
        admit_live: Callable[[Plan], None],
        counters: Counters,
    ) -> None:
        """`admit_live`: raises OverloadError for a live video that may not begin."""
        self._planner, self._roster, self._residency, self._admit_live = planner, roster, residency, admit_live
        self._counters = counters

    # ------------------------------------------------------------------ accepting

    def prompt(self, request_id: str, prompt: str, recache: bool) -> None:
        """Accepts another prompt. Raises as `Engine.prompt`."""
        job = self._roster.job(request_id)
        holder = job or self._roster.entry(request_id)
        plan = self._planner.plan(self._planner.prompted(holder, prompt))  # raises now what is wrong with it
        if isinstance(holder, Waiting) and holder.is_at_start:
            self._roster.replace_entry(replace(holder, plan=plan))
        else:
            self._accept(holder, [PromptChange(prompt, recache)])

    def fork(self, request_id: str, continuations: Sequence[Continuation]) -> None:
        """Accepts continuations, all of them or none. Raises as `Engine.fork`."""
        job = self._roster.job(request_id)
        ids = [continuation.id for continuation in continuations]
        for new_id in ids:
            self._roster.require_new(new_id)
        if len(set(ids)) < len(ids):
            raise ConfigError(f"continuations have the ids {ids}; give each its own")
        holder = job or self._roster.entry(request_id)
        plans = [self._plan_of(holder, continuation) for continuation in continuations]
        for plan in plans:
            self._admit_live(plan)
        if isinstance(holder, Waiting) and holder.shares_nothing:
            for entry in [self._planner.entry(plan.request) for plan in plans]:
                self._roster.queue(entry)
        else:
            self._accept(holder, continuations)

    def extend(self, request_id: str, num_frames: int) -> None:
        """Makes a video longer. Raises as `Engine.extend`."""
        job = self._roster.job(request_id)
        if job is not None:
            self._lengthen(job, self._planner.plan(_longer(job.request, num_frames)))
            return
        entry = self._roster.entry(request_id)
        longer = self._planner.entry(_longer(entry.request, num_frames), entry.snapshot)
        self._roster.replace_entry(replace(longer, since=entry.since, changes=entry.changes))

    def _accept(self, holder: Job | Waiting, changes: Sequence[Change]) -> None:
        """Makes the changes now if the video is at a boundary, and all or none of them; otherwise they wait for it."""
        if isinstance(holder, Waiting) or not _can_change(holder, changes):
            self._roster.expect(holder, changes)
        else:
            self._make(holder, changes)

    # ------------------------------------------------------------------ making

    def apply_due(self) -> list[EngineOutput]:
        """Makes the changes of all jobs that are at a boundary and can make them now, as `apply` does."""
        jobs = self._roster.jobs.values()
        due = [job for job in jobs if (job.changes or job.request.later_prompts) and job.is_at_boundary]
        return [output for job in due for output in self.apply(job)]

    def apply(self, job: Job) -> list[EngineOutput]:
        """Makes the changes that waited for the boundary the job has reached; each one that fails becomes an output.

        A later prompt of the request itself comes first; if that one fails, so does the video.
        """
        outputs: list[EngineOutput] = []
        if (later := job.due_prompt) is not None:
            if later.recache and job.stream is None:
                return outputs  # until its pages are back
            request = replace(self._planner.prompted(job, later.prompt), later_prompts=job.request.later_prompts[1:])
            try:
                self._switch_prompt(job, request, later.recache)
            except Exception as error:
                self._residency.leave(job)
                return [self._roster.failure(job.request.id, error)]
        while job.changes and not _waits_for_pages(job, job.changes[0]):
            change = job.changes.pop(0)
            try:
                self._make(job, [change])
            except Exception as error:
                outputs.append(self._refusal(job, change, error))
        return outputs

    def _make(self, job: Job, changes: Sequence[Change]) -> None:
        twins: list[Job] = []
        try:
            for change in changes:
                if isinstance(change, PromptChange):
                    self._switch_prompt(job, self._planner.prompted(job, change.prompt), change.recache)
                else:
                    twins.append(self._residency.twin(job, self._plan_of(job, change)))
        except BaseException:
            for twin in twins:
                self._residency.leave(twin)
            raise
        self._counters.num_forks += len(twins)

    def _switch_prompt(self, job: Job, request: VideoRequest, recache: bool) -> None:
        plan = self._planner.plan(request)
        plan.check_continues(job.schedule, job.num_rounds_done)
        if recache:
            stream = recached(self._planner.model, self._planner.cache, job, plan)
            self._planner.cache.release(job.open_stream())
            job.stream = stream
        job.request, job.condition = plan.request, plan.condition
        job.follow(plan.schedule)

    def _plan_of(self, source: Job | Waiting, continuation: Continuation) -> Plan:
        """Raises ConfigError for a continuation without a frame of its own, StateError for one that cannot go on."""
        prompt = source.request.prompt if continuation.prompt is None else continuation.prompt
        plan = self._planner.plan(continuation.request_after(self._planner.prompted(source, prompt)))
        if plan.request.num_frames <= source.num_frames_out:
            raise ConfigError(
                f"video {source.request.id!r} has {source.num_frames_out} frames; give its continuation "
                f"{continuation.id!r} more than that (num_frames is {plan.request.num_frames})"
            )
        plan.check_continues(source.schedule, source.num_rounds_done)
        return plan

    def _lengthen(self, job: Job, plan: Plan) -> None:
        plan.check_continues(job.schedule, job.num_rounds_done)
        if job.stream is not None:
            self._planner.extend(job.stream, plan)
        elif job.image is not None:
            job.image = plan.lengthened(job.image)
        was_over = job.is_over
        job.request, job.condition = plan.request, plan.condition
        job.follow(plan.schedule)
        if was_over and job.playout is not None:
            job.playout.owe(self._planner.clock())

    def _refusal(self, job: Job, change: Change, error: Exception) -> EngineOutput:
        if isinstance(change, Continuation):
            return self._roster.failure(change.id, error)
        logger.warning("video %s keeps its prompt: %s", job.request.id, error)
        return PromptRefused(job.request.id, change.prompt, change.recache, presentable(error))


def _can_change(job: Job, changes: Sequence[Change]) -> bool:
    if not job.is_at_boundary or job.changes or job.due_prompt is not None:
        return False
    return not any(_waits_for_pages(job, change) for change in changes)


def _waits_for_pages(job: Job, change: Change) -> bool:
    """Whether the change needs the job's pages, and they are in host memory."""
    return job.stream is None and isinstance(change, PromptChange) and change.recache


def _longer(request: VideoRequest, num_frames: int) -> VideoRequest:
    """Raises ConfigError for a number that is not larger than before."""
    num_frames = whole_number("num_frames", num_frames, request.num_frames + 1, error=ConfigError)
    return replace(request, num_frames=num_frames)
