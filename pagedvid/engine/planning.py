"""From a request to a job: its condition and schedule, the pages that it needs, and whether a schedule goes on from
where another one is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from typing import Any

from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_image import StreamImage
from pagedvid.cache.window import Commit, Window
from pagedvid.engine.failures import described
from pagedvid.engine.job import Change, Job, Latents, check_stored_alone, commit_ranges
from pagedvid.engine.playout import Playout
from pagedvid.engine.protocol import ModelGeometry, Steerable, VideoModel
from pagedvid.engine.requests import VideoRequest
from pagedvid.engine.schedule import Round, Schedule
from pagedvid.engine.snapshot import JobSnapshot
from pagedvid.errors import CapacityError, ConfigError, ModelError, PagedvidError, StateError
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.shown import shown


@dataclass(frozen=True)
class Planner:
    """What the plans of all videos of an engine have in common."""

    model: VideoModel
    cache: PagedKVCache
    window: Window
    num_denoise_steps: int | None
    clock: Callable[[], float]
    """Seconds, by which viewers' clocks run."""

    def plan(self, request: VideoRequest) -> Plan:
        """The plan of a request. Raises PromptError, ConfigError, and ModelError for any other error of the model."""
        try:
            condition = self._condition(request)
            schedule = self.model.schedule(condition, request.num_frames, self.num_denoise_steps, self.window)
        except PagedvidError:
            raise
        except Exception as error:
            raise ModelError(f"request {request.id!r} cannot be prepared: {described(error)}") from error
        return Plan(request, condition, schedule, self.model.geometry)

    def _condition(self, request: VideoRequest) -> Any:
        """The condition of the whole video. Earlier prompts matter to a steerable model only; other models need not
        encode them again."""
        model, earlier = self.model, request.earlier_prompts
        if not isinstance(model, Steerable):
            return model.prepare(request.prompt, request.inputs, request.num_frames)
        prompts = [*(it.prompt for it in earlier), request.prompt]
        condition, *following = [model.prepare(prompt, request.inputs, request.num_frames) for prompt in prompts]
        for before, after in zip(earlier, following, strict=True):
            condition = model.continued(condition, before.until_frame, after)
        return condition

    def prompted(self, video: Job | Waiting, prompt: str) -> VideoRequest:
        """The request of a video once another prompt has taken over at its next chunk boundary."""
        num_frames = video.schedule.frames_begun(video.num_rounds_done, self.model.geometry.frames_per_chunk)
        return self._with_prompt(video.request, prompt, num_frames)

    def _with_prompt(self, request: VideoRequest, prompt: str, num_frames: int) -> VideoRequest:
        if isinstance(self.model, Steerable):
            return request.steered(prompt, num_frames)
        return replace(request, prompt=prompt)

    def entry(self, request: VideoRequest, snapshot: JobSnapshot | None = None) -> Waiting:
        """A video that is going to begin, or to go on from the snapshot. Raises as `plan`, CapacityError when it would
        not fit even alone, and StateError for a request that the snapshot cannot go on with."""
        plan = self.plan(request)
        self._check_later_prompts(plan)
        if snapshot is not None:
            plan.check_continues(self.plan(snapshot.request).schedule, snapshot.num_rounds_done)
            snapshot = plan.taken_up(snapshot)
        image = None if snapshot is None else snapshot.image
        num_pages = self.num_pages(plan) if image is None else self.cache.image_pages(image)
        peak_pages = num_pages * (2 if request.recaches else 1)
        if not self.cache.could_hold(peak_pages):
            what = " while its chunks are stored again" if request.recaches else ""
            raise CapacityError(
                f"request {request.id!r} needs {peak_pages} pages at its peak{what}; the pool has "
                f"{self.cache.pool.num_pages}. Give the cache more memory, use fewer bits or a shorter window."
            )
        return Waiting(plan, num_pages, snapshot, self.clock())

    def _check_later_prompts(self, plan: Plan) -> None:
        """Raises what `plan` raises for any of them, ConfigError for one that would never show, and StateError where
        chunks cannot be stored again."""
        request, size = plan.request, self.model.geometry.frames_per_chunk
        then = request
        ends = [plan.schedule.chunk_from(it.first_frame, size) for it in request.later_prompts]
        ends.append(plan.schedule.chunk_from(request.num_frames, size))
        for number, later in enumerate(request.later_prompts):
            if ends[number] == ends[number + 1]:
                raise ConfigError(
                    f"the prompt {shown(later.prompt)} of request {request.id!r}, from frame {later.first_frame} on, "
                    f"would never show: chunks have {size} frames, and none begins before the next prompt or the end. "
                    "Give it more time, or leave it out"
                )
            then = self._with_prompt(then, later.prompt, ends[number] * size - plan.schedule.first_frame)
            self.plan(then)
        if request.recaches:
            check_stored_alone(plan.schedule, request.id)

    def num_pages(self, plan: Plan) -> int:
        """What its stream will reserve."""
        return self.cache.pages_needed(
            plan.schedule.window,
            plan.range_tokens,
            num_branches=len(plan.geometry.branches),
            max_chunks=plan.schedule.num_commits,
            commits=plan.commits,
        )

    def open(self, plan: Plan) -> Stream:
        """Opens a stream for a plan. Raises CapacityError."""
        return self.cache.open(
            plan.schedule.window,
            plan.range_tokens,
            branches=plan.geometry.branches,
            max_chunks=plan.schedule.num_commits,
            commits=plan.commits,
        )

    def new_job(self, plan: Plan, number: int, since: float, num_frames_seen: int = 0) -> Job:
        """A job at its beginning, without a stream. Raises what the model raises.

        `since`: when its viewer began to wait. `num_frames_seen`: frames that it has from another run or video.
        """
        speed = plan.request.live_frames_per_second
        return Job(
            number,
            plan.request,
            plan.condition,
            plan.schedule,
            Latents(plan.geometry),
            self.model.decoder(plan.condition),
            playout=None if speed is None else Playout(speed, since, num_frames_seen),
        )

    def completed(self, image: StreamImage, job: Job) -> StreamImage:
        """The image of the job's stream with what files leave out: rotary tables, and what the model attached to
        the chunks that were committed."""
        ranges = commit_ranges(job.schedule, job.num_rounds_done)
        tags = {(part.branch, index): part.tag for index, parts in ranges.items() for part in parts}
        return image.with_model(self.model.rope, lambda branch, index: tags[branch, index])

    def extend(self, stream: Stream, plan: Plan) -> None:
        """Gives the stream the plan's length. Raises CapacityError and StateError; nothing has changed in that case."""
        self.cache.extend(stream, max_chunks=plan.schedule.num_commits, commits=plan.commits)


@dataclass(frozen=True)
class Plan:
    """What a request asks of the model and the cache; nothing is taken yet."""

    request: VideoRequest
    condition: Any
    schedule: Schedule
    geometry: ModelGeometry

    @property
    def range_tokens(self) -> int:
        """Tokens of the longest range."""
        return self.schedule.max_range_frames * self.geometry.tokens_per_frame

    @property
    def commits(self) -> tuple[Commit, ...] | None:
        """What each branch will commit, if the schedule says so."""
        return self.schedule.planned_commits(self.geometry.tokens_per_frame)

    def check_continues(self, schedule: Schedule, num_rounds: int) -> None:
        """Raises StateError unless the first rounds of a schedule, which are done, are the beginning of this plan."""
        pairs = zip_longest(islice(schedule.rounds(), num_rounds), islice(self.schedule.rounds(), num_rounds))
        if (
            any(_untagged(before) != _untagged(after) for before, after in pairs)
            or schedule.window != self.schedule.window
        ):
            raise StateError(
                f"video {self.request.id!r} cannot go on to {self.request.num_frames} frames: {num_rounds} of its "
                "rounds are done, and a video of that length is worked on in another order. Extend it earlier, or make "
                "a new video"
            )

    def taken_up(self, snapshot: JobSnapshot) -> JobSnapshot:
        """The snapshot with the request and the length of this plan."""
        image = None if snapshot.image is None else self.lengthened(snapshot.image)
        return replace(snapshot, request=self.request, image=image)

    def lengthened(self, image: StreamImage) -> StreamImage:
        """The image of a stream with the length of this plan."""
        return replace(image, max_chunks=self.schedule.num_commits, commits=self.commits)


def _untagged(round_: Round | None) -> Round | None:
    """A round as it can be compared: tags may be anything, and follow from the frames."""
    if round_ is None:
        return None
    return replace(round_, ranges=tuple(replace(part, tag=None) for part in round_.ranges))


@dataclass(frozen=True, eq=False)
class Waiting:
    """A video without a stream: accepted, or taken up from a snapshot."""

    plan: Plan
    num_pages: int
    """What its stream will reserve."""
    snapshot: JobSnapshot | None
    """Where it goes on; None: at its beginning."""
    since: float
    """When it was accepted, by the planner's clock: its viewer waits from then on."""
    changes: list[Change] = field(default_factory=list)
    """What waits for its next chunk boundary: changes, if its snapshot was taken within a chunk, and forks that will
    share its given chunks."""

    @property
    def request(self) -> VideoRequest:
        """As accepted."""
        return self.plan.request

    @property
    def schedule(self) -> Schedule:
        """As accepted."""
        return self.plan.schedule

    @property
    def num_rounds_done(self) -> int:
        """Rounds that it does not have to do again."""
        return 0 if self.snapshot is None else self.snapshot.num_rounds_done

    @property
    def num_frames_out(self) -> int:
        """Latent frames that are out already."""
        return 0 if self.snapshot is None else self.snapshot.num_frames_out

    @property
    def is_at_start(self) -> bool:
        """Whether none of its rounds is done."""
        return self.num_rounds_done == 0

    @property
    def shares_nothing(self) -> bool:
        """Whether a fork of it begins at its own beginning: nothing is stored, and no chunk is given."""
        return self.is_at_start and self.schedule.first_frame == 0

    def as_snapshot(self) -> JobSnapshot:
        """The snapshot from which it begins or goes on."""
        if self.snapshot is not None:
            return self.snapshot
        return JobSnapshot(self.request, 0, 0, 0, {}, {}, {}, {}, (0, 0), None)
