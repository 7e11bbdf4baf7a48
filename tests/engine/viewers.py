"""A device and its viewers without a model: what a policy does to playing videos. Time is counted, not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pagedvid.engine.playout import Playout
from pagedvid.engine.scheduler import count_waits, next_batch

CHUNK_FRAMES, CHUNK_ROUNDS = 8, 4


@dataclass(eq=False)
class Video:
    """`frames_per_second` None: nobody watches."""

    number: int
    start_seconds: float
    num_chunks: int
    frames_per_second: float | None
    num_rounds_done: int = 0
    num_tokens: int = 1
    priority: int = 0
    waited_steps: int = 0
    most_waited: int = 0
    credit_seconds: float | None = None
    playout: Playout | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.frames_per_second is not None:
            self.playout = Playout(self.frames_per_second, self.start_seconds)

    @property
    def is_mid_chunk(self) -> bool:
        return self.num_rounds_done % CHUNK_ROUNDS > 0

    @property
    def is_over(self) -> bool:
        return self.num_rounds_done == self.num_chunks * CHUNK_ROUNDS

    def run_round(self, now: float) -> None:
        self.num_rounds_done += 1
        if self.playout is not None and not self.is_mid_chunk:
            self.playout.deliver(CHUNK_FRAMES, now)
            if self.is_over:
                self.playout.excuse(now)


@dataclass
class Device:
    """Runs the videos in their order of arrival under a policy; a round takes `round_seconds`, batching saves none."""

    videos: Sequence[Video]
    policy: str
    round_seconds: float
    max_batch: int = 1
    now: float = 0.0

    def run_until(self, stop_seconds: float) -> None:
        while self.now < stop_seconds:
            jobs = [video for video in self.videos if video.start_seconds <= self.now and not video.is_over]
            if not jobs:
                later = [video.start_seconds for video in self.videos if video.start_seconds > self.now]
                self.now = min([*later, stop_seconds])
                continue
            for job in jobs:
                job.credit_seconds = None if job.playout is None else job.playout.credit_seconds(self.now)
            batch = next_batch(jobs, self.policy, self.max_batch)
            count_waits(jobs, batch)
            self.now += self.round_seconds * len(batch)
            for job in batch:
                job.run_round(self.now)
            for job in jobs:
                job.most_waited = max(job.most_waited, job.waited_steps)

    def stalled_seconds(self) -> list[float]:
        return [video.playout.stalled_seconds(self.now) for video in self.videos if video.playout is not None]

    def mean_play_ratio(self) -> float:
        ratios = [video.playout.play_ratio(self.now) for video in self.videos if video.playout is not None]
        return sum(ratios) / len(ratios)
