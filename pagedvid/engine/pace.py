"""How fast this device is: the time of a token, measured while the engine runs, and what it says about live videos.

A live video needs a number of tokens per second of playing, in denoise steps and in commit passes. Times the seconds
per token, that is its share of the device. Shares add up, because batching gains little on a busy device. So one more
live video is refused when the shares would exceed SHARE_FOR_LIVE.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

import numpy as np

from pagedvid.engine.schedule import Schedule

logger = logging.getLogger(__name__)

SHARE_FOR_LIVE = 0.9
"""Share of the device's time for live videos. The rest is for throughput jobs that have waited too long, and for
variations."""
BLOCK_STEPS, NUM_BLOCKS = 16, 16
"""Steps of one estimate, and how many of the newest estimates count."""
COUNTED_CHUNKS = 16
"""Chunks at the beginning of a video from which its work is counted."""


@dataclass(frozen=True)
class Work:
    """Tokens that go through the model for one latent frame of output, all ranges and branches."""

    denoise_tokens: float
    commit_tokens: float

    @staticmethod
    def of(schedule: Schedule, frames_per_chunk: int, tokens_per_frame: int) -> Work:
        """The work of a schedule per frame: the mean over a short video, or over the later half of a long one's first
        COUNTED_CHUNKS chunks. Later rounds are not generated, because a model may choose what a chunk remembers only
        when that chunk begins."""
        frames = {False: 0, True: 0}
        sums = [(0, 0)]
        """(Denoise, commit) frames up to the end of each finished chunk."""
        first = 0
        for round_ in schedule.rounds():
            for part in round_.ranges:
                frames[part.commits] += len(part.frames)
            sums += [(frames[False], frames[True])] * len(round_.finished)
            if len(sums) > COUNTED_CHUNKS:
                first = COUNTED_CHUNKS // 2
                break
        per_frame = tokens_per_frame / (frames_per_chunk * (len(sums) - 1 - first))
        denoise, commit = (per_frame * (last - before) for before, last in zip(sums[first], sums[-1], strict=True))
        return Work(denoise, commit)


@dataclass(frozen=True)
class TokenSeconds:
    """The time of one token, in seconds."""

    denoise: float
    commit: float

    def share(self, work: Work, latent_frames_per_second: float) -> float:
        """Device seconds that one second of such a video takes."""
        return latent_frames_per_second * (work.denoise_tokens * self.denoise + work.commit_tokens * self.commit)


class Pace:
    """The time of a token on this device, from the newest steps.

    Every BLOCK_STEPS steps give one estimate: the seconds per denoise token and per commit token that explain their
    times best (least squares, none negative). Of the newest NUM_BLOCKS estimates the lower median counts. So recurring
    work, such as decoding, is in every estimate, and a single hiccup spoils at most one. The fixed cost of a step is
    part of the time of its tokens.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, float]] = []
        self._estimates: deque[TokenSeconds] = deque(maxlen=NUM_BLOCKS)

    def record(self, num_denoise_tokens: int, num_commit_tokens: int, seconds: float) -> None:
        """One step of the engine: the tokens of its forward, and how long the whole step took, with its decoding."""
        if num_denoise_tokens + num_commit_tokens == 0:
            return
        self._steps.append((num_denoise_tokens, num_commit_tokens, seconds))
        if len(self._steps) == BLOCK_STEPS:
            self._estimates.append(_estimate(self._steps))
            self._steps.clear()

    @property
    def token_seconds(self) -> TokenSeconds | None:
        """The lower median of the newest estimates; None until BLOCK_STEPS steps were recorded."""
        if not self._estimates:
            return None
        return TokenSeconds(
            median_low(estimate.denoise for estimate in self._estimates),
            median_low(estimate.commit for estimate in self._estimates),
        )


def _estimate(steps: Sequence[tuple[int, int, float]]) -> TokenSeconds:
    """Least squares over steps. Kinds of tokens that cannot be told apart get the same time."""
    table = np.array(steps, dtype=np.float64)
    tokens, seconds = table[:, :2], table[:, 2]
    if np.linalg.matrix_rank(tokens) == 2:
        denoise, commit = np.linalg.lstsq(tokens, seconds, rcond=None)[0]
        if denoise > 0 and commit > 0:
            return TokenSeconds(float(denoise), float(commit))
    alike = float(seconds.sum() / tokens.sum())
    return TokenSeconds(alike, alike)


@dataclass(frozen=True)
class LiveVideo:
    """What admission knows of a live video."""

    work: Work
    frames_per_second: float
    """Of its viewer, in output frames."""
    latent_frames_per_second: float
    """The same speed in latent frames."""


def refusal(pace: Pace, new: LiveVideo, admitted: Sequence[LiveVideo]) -> str | None:
    """Why one more live video would make the others stall, with the numbers; None: it would not.

    Before the pace is known, every video is admitted, and a line in the log says so. So is the only live video, however
    fast it plays: it makes nobody else stall.
    """
    seconds = pace.token_seconds
    if seconds is None:
        logger.info("a live video is admitted unchecked: too few steps were made to know how fast this device is")
        return None
    if not admitted:
        return None
    needed = seconds.share(new.work, new.latent_frames_per_second)
    used = sum(seconds.share(video.work, video.latent_frames_per_second) for video in admitted)
    if used + needed <= SHARE_FOR_LIVE:
        return None
    possible = new.frames_per_second * max(0.0, SHARE_FOR_LIVE - used) / needed
    slower = f"ask for at most {possible:.3g} frames per second, " if possible >= 1 else ""
    return (
        f"a live video at {new.frames_per_second:g} frames per second needs {needed:.2f} of the device, as measured "
        f"here; {used:.2f} of the {SHARE_FOR_LIVE:g} that live videos may use are taken by {len(admitted)} of them. "
        f"Wait until one has ended, {slower}or leave out live_frames_per_second: then it takes what is left"
    )
