"""The engine: continuous batching of the rounds of many videos. `step` is the whole loop.

The model says what a round is (engine/schedule.py). Streams join and leave between any two steps; each is at its own
round, and denoise steps of some share a forward with commit passes of others. A chunk is given out as soon as it is
clean. Other videos in the same batch change a video's frames by rounding at most, and not at all in a reproducible
engine.

A video can be paused, continued by others, sent on with another prompt or made longer while it is made. Such changes
wait for its next chunk boundary: the rounds of a chunk that has begun are finished as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from pagedvid.arguments import instance_of, list_of, one_of, whole_number
from pagedvid.cache.host_memory import HostMemory
from pagedvid.cache.window import Window
from pagedvid.engine.changes import Changes
from pagedvid.engine.counters import Counters
from pagedvid.engine.job import Job
from pagedvid.engine.live_admission import require_sustained
from pagedvid.engine.pace import Pace
from pagedvid.engine.planning import Plan, Planner, Waiting
from pagedvid.engine.protocol import VideoModel
from pagedvid.engine.requests import Continuation, EngineOutput, EngineStats, VideoRequest, VideoStatus
from pagedvid.engine.residency import Residency
from pagedvid.engine.roster import Roster
from pagedvid.engine.rounds import Rounds
from pagedvid.engine.scheduler import LIVE_ADMISSION, POLICIES, count_waits, next_batch
from pagedvid.engine.snapshot import JobSnapshot, on_host, progress_of
from pagedvid.engine.status import statuses
from pagedvid.errors import CapacityError, ConfigError
from pagedvid.host_state import independent_of_host
from pagedvid.paged_kv_cache import PagedKVCache


class Engine:
    """Generates many videos at once with one model and one cache. Not thread-safe."""

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
        host_memory: int | str = 0,
        live_admission: str = "measured",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError for a window longer than the model was trained on, and for a cache made for another model.

        `max_batch_tokens`: most packed tokens of one forward; a single video always runs. `policy`: one of
        `scheduler.POLICIES`. `max_concurrent`: most videos that are worked on at once; None: as many as the memory
        holds. `num_denoise_steps`: None: the model's own number. `reproducible`: each video has its forwards to itself,
        so that its frames are the same to the last bit whatever else runs. This holds on one machine with one number of
        threads, one backend and one size of scratch. `host_memory`: bytes for the pages of videos that are swapped out,
        or text such as "8GiB". `live_admission`: one of `scheduler.LIVE_ADMISSION`. `clock`: returns seconds, for the
        viewers' clocks.
        """
        one_of(tuple(POLICIES), "policy", policy, ConfigError)
        _check_fit(model, cache, window)
        self.model = model
        self.cache = cache
        self.window = window
        self.max_batch_tokens = whole_number("max_batch_tokens", max_batch_tokens, 1, error=ConfigError)
        self.policy = policy
        self.max_concurrent = _whole_or_none("max_concurrent", max_concurrent)
        self.num_denoise_steps = _whole_or_none("num_denoise_steps", num_denoise_steps)
        self.reproducible = reproducible
        self.host_memory = HostMemory(host_memory, cache.on_every_rank)
        self.pace = Pace()
        self.latest_batch: tuple[str, ...] = ()
        """Ids of the videos that the latest step worked on: one that broke the engine is among them."""
        self.one_at_a_time = False
        """Whether each video has its forwards to itself for now, so that it is known which of them breaks engines."""
        self._clock = clock
        self._live_admission = one_of(LIVE_ADMISSION, "live_admission", live_admission, ConfigError)
        self._roster, self._counters = Roster(), Counters()
        self._planner = Planner(model, cache, window, self.num_denoise_steps, clock)
        parts = (self._planner, self._roster)
        self._residency = Residency(*parts, self.host_memory, self.max_concurrent, self._counters)
        self._changes = Changes(*parts, self._residency, self._admit_live, self._counters)
        self._rounds = Rounds(*parts, self._residency, self._changes, self._counters)
        self._stuck_pages: int | None = None  # reserved when nothing could begin; None: not tried yet

    # ------------------------------------------------------------------ the loop

    @independent_of_host
    def step(self) -> list[EngineOutput]:
        """One batched forward and what it finished. Returns [] while chunks are still noisy.

        Raises CapacityError when nothing runs and nothing can start because others hold the pages of the cache.
        """
        started = time.perf_counter()
        self.latest_batch = ()
        self._read_viewers_clocks()
        outputs = self._roster.take_late() + self._residency.admit() + self._changes.apply_due()
        outputs += self._rounds.give_out_rests()  # also of the forks that were made just now
        batch = self._next_batch()
        self.latest_batch = tuple(job.request.id for job in batch)
        num_tokens = self._num_tokens(batch)
        if batch:
            outputs += self._rounds.run(batch)
        elif not outputs:
            self._stop_trying()
        self._counters.num_steps += 1
        if self.cache.spec.debug_checks:
            self.cache.check()
        seconds = time.perf_counter() - started
        self._counters.step_seconds += seconds
        self.pace.record(*num_tokens, seconds)
        return outputs

    def run(self) -> Iterator[EngineOutput]:
        """Steps until nothing is left to do, yielding each finished chunk and each failure at once."""
        while self.has_work:
            yield from self.step()

    @property
    def has_work(self) -> bool:
        """Whether a step would do something. Paused and finished videos do not count, nor do videos that wait for their
        pages."""
        if self._roster.late or self._residency.runnable() or self._rounds.longer():
            return True
        could_begin = bool(self._roster.waiting or self._residency.swapped())
        return could_begin and self._stuck_pages != self.cache.reserved_pages

    def _read_viewers_clocks(self) -> None:
        now = self._clock()
        for job in self._roster.jobs.values():
            job.credit_seconds = None if job.playout is None else job.playout.credit_seconds(now)

    def _next_batch(self) -> list[Job]:
        jobs = self._residency.runnable()
        # The shape of a product decides how it is rounded, and the videos that share a forward decide its shape.
        # A budget of one token keeps them apart, since one video always runs.
        is_apart = self.reproducible or self.one_at_a_time
        batch = next_batch(jobs, self.policy, 1 if is_apart else self.max_batch_tokens)
        count_waits(jobs, batch)
        return batch

    def _num_tokens(self, batch: Sequence[Job]) -> tuple[int, int]:
        """(Tokens of the batch's denoise steps, tokens of its commit passes)."""
        frames = {False: 0, True: 0}
        for part in (part for job in batch for part in job.round.ranges):
            frames[part.commits] += len(part.frames)
        return frames[False] * self.model.geometry.tokens_per_frame, frames[True] * self.model.geometry.tokens_per_frame

    def _stop_trying(self) -> None:
        """Begins no video until something changes. Raises CapacityError if nothing in this engine can change it."""
        roster = self._roster
        if roster.waiting and not roster.jobs:
            raise CapacityError(
                f"request {roster.waiting[0].request.id!r} cannot start although no video is running: streams from "
                f"outside this engine hold {self.cache.reserved_pages} of {self.cache.pool.num_pages} pages. "
                "Release them."
            )
        self._stuck_pages = self.cache.reserved_pages

    # ------------------------------------------------------------------ videos come and go

    @independent_of_host
    def submit(self, request: VideoRequest) -> None:
        """Queues a video. Raises PromptError, ConfigError, CapacityError when it would not fit even alone,
        OverloadError for a live one that would make others stall, and ModelError for any other error of the model."""
        self._queue(self._entry(request))

    @independent_of_host
    def check(self, request: VideoRequest) -> None:
        """Raises what `submit` would raise now; nothing is queued."""
        self._entry(request)

    @independent_of_host
    def restore(self, snapshot: JobSnapshot) -> None:
        """Queues a video that goes on where `checkpoint` left it, perhaps in another process. Raises as `submit`."""
        instance_of(JobSnapshot, "snapshot", snapshot, "what `checkpoint` returned", ConfigError)
        self._roster.require_new(snapshot.request.id)
        self._queue(self._planner.entry(snapshot.request, snapshot))

    @independent_of_host
    def checkpoint(self, request_id: str) -> JobSnapshot:
        """Everything that an engine with the same model and settings needs to go on with a video from here.

        Tensors are in host memory. Changes that wait for a chunk boundary are not part of it. Raises ConfigError for
        unknown ids.
        """
        job = self._roster.job(request_id)
        if job is None:
            return self._roster.entry(request_id).as_snapshot()
        image = self.cache.copy_out(job.stream) if job.stream is not None else job.image
        return on_host(progress_of(job), None if image is None else self.cache.whole_image(image))

    def cancel(self, request_id: str) -> None:
        """Drops a video in any state, a finished one that was kept as well; its pages are free at once. Raises
        ConfigError for ids of videos that have ended or never were."""
        job = self._roster.job(request_id)
        if job is None:
            self._roster.forget_entry(request_id)
        else:
            self._residency.leave(job)
        self._stuck_pages = None

    def close(self) -> None:
        """Cancels all videos; their pages are free at once."""
        for job in list(self._roster.jobs.values()):
            self._residency.leave(job)
        self._roster.clear()

    # ------------------------------------------------------------------ changes of a video's course

    def pause(self, request_id: str) -> None:
        """Stops work on a video at its next chunk boundary. Raises ConfigError for unknown ids."""
        job = self._roster.job(request_id)
        if job is None:
            self._roster.park(request_id)
            return
        job.is_paused = True
        if job.playout is not None:
            job.playout.excuse(self._clock())

    def resume(self, request_id: str) -> None:
        """Undoes `pause`. Raises ConfigError for unknown ids."""
        job = self._roster.job(request_id)
        self._stuck_pages = None
        if job is None:
            self._roster.unpark(request_id)
            return
        job.is_paused = False
        if job.playout is not None and not job.is_over:
            job.playout.owe(self._clock())

    @independent_of_host
    def prompt(self, request_id: str, prompt: str, *, recache: bool = False) -> None:
        """Another prompt, from the video's next chunk on. A steerable model (`protocol.Steerable`) continues from where
        the video is then, and the present prompt given again changes nothing.

        `recache`: the kept chunks are stored again under it, all or none; both copies must fit into the pool for a
        moment. Raises PromptError, ConfigError and, at a chunk boundary, CapacityError, StateError and what the model
        raises. A prompt that has to wait for the boundary and fails there is a `PromptRefused` among the outputs.
        """
        self._changes.prompt(request_id, prompt, recache)

    @independent_of_host
    def fork(self, request_id: str, continuations: Sequence[Continuation]) -> None:
        """New videos that go on from this one's history at its next chunk boundary. They share its pages.

        Chunks after it have the continuation's own prompt and seed. A continuation that does not fit into the pool at
        the boundary begins swapped out; it fails if host memory has no room either. Raises PromptError,
        ConfigError, OverloadError, and at a boundary CapacityError; no continuation is made then.
        """
        continuations = list_of(Continuation, "continuations", continuations, "[Continuation('b')]", ConfigError)
        self._changes.fork(request_id, continuations)
        self._stuck_pages = None

    @independent_of_host
    def extend(self, request_id: str, num_frames: int) -> None:
        """A new number of frames for the whole video, larger than before. A finished one that was kept goes on.

        Raises ConfigError, CapacityError when a longer stream does not fit now, and StateError when the rounds already
        done would differ in a longer video; nothing has changed then.
        """
        self._changes.extend(request_id, num_frames)
        self._stuck_pages = None

    def report_played(self, request_id: str, num_frames: int) -> None:
        """The client has played so many frames of a live video. Raises ConfigError for unknown ids, for videos that are
        not live, and for more frames than were given out."""
        job = self._roster.job(request_id)
        if job is None or job.playout is None:
            raise ConfigError(
                f"video {request_id!r} has no viewer yet; only live videos that have begun have one "
                "(live_frames_per_second of their request)"
            )
        job.playout.report(num_frames, self._clock())

    # ------------------------------------------------------------------ what there is

    def videos(self) -> tuple[VideoStatus, ...]:
        """Every video that the engine knows: those that have begun, then those that wait."""
        return statuses(self._roster, self.cache, self._clock())

    def stats(self) -> EngineStats:
        """The engine's counters; reading them changes nothing."""
        counters, roster = self._counters, self._roster
        return EngineStats(
            num_waiting=len(roster.waiting) + len(roster.parked),
            num_running=sum(not job.is_over for job in roster.jobs.values()),
            num_finished=counters.num_finished,
            num_failed=roster.num_failed,
            num_chunks_done=counters.num_chunks_done,
            num_forks=counters.num_forks,
            num_steps=counters.num_steps,
            forward_seconds=counters.forward_seconds,
            step_seconds=counters.step_seconds,
            num_swaps_out=counters.num_swaps_out,
            num_swaps_in=counters.num_swaps_in,
            swapped_out_bytes=counters.swapped_out_bytes,
            swapped_in_bytes=counters.swapped_in_bytes,
        )

    # ------------------------------------------------------------------ inside

    def _admit_live(self, plan: Plan) -> None:
        if self._live_admission == "measured":
            require_sustained(plan, self._roster, self.pace)

    def _entry(self, request: VideoRequest) -> Waiting:
        """The entry of a new video. Raises as `submit`."""
        instance_of(VideoRequest, "request", request, "VideoRequest('a', 'a red circle', 48)", ConfigError)
        self._roster.require_new(request.id)
        entry = self._planner.entry(request)
        self._admit_live(entry.plan)
        return entry

    def _queue(self, entry: Waiting) -> None:
        self._roster.queue(entry)
        self._stuck_pages = None


def _check_fit(model: VideoModel, cache: PagedKVCache, window: Window) -> None:
    """Raises ConfigError unless cache and window are made for the model."""
    geometry, spec = model.geometry, cache.whole_spec
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


def _whole_or_none(name: str, value: int | None) -> int | None:
    """Raises ConfigError unless the value is None or a whole number of at least 1."""
    return None if value is None else whole_number(name, value, 1, error=ConfigError)
