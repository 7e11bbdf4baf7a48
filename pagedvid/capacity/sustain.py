"""How many streams a device plays while it makes them: what one costs per second of video, at a given token rate.

    share of a stream = latent frames per second x (denoise tokens of a frame / rate + commit tokens of a frame / rate)
    streams           = share that is given out // share of a stream

This is the rule by which the engine admits live videos (engine/pace.py). How many are resident is another question
(capacity/sizing.py); the smaller of the two numbers counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pagedvid.capacity.look_back import RebuiltLookBack
from pagedvid.capacity.sizing import Question
from pagedvid.engine.pace import SHARE_FOR_LIVE, TokenSeconds, Work
from pagedvid.errors import ConfigError
from pagedvid.shown import shown

MOST_SPEED, MOST_TOKENS = 1000.0, 10**12
"""Frames per second of a viewer, and tokens per second of a device; more is a typing mistake."""

_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)"


@dataclass(frozen=True)
class TokenRate:
    """How fast a device is with a model."""

    denoise_tokens_per_second: float
    commit_tokens_per_second: float
    source: str
    """Where the numbers come from, for people."""

    @property
    def token_seconds(self) -> TokenSeconds:
        """The same as times."""
        return TokenSeconds(1 / self.denoise_tokens_per_second, 1 / self.commit_tokens_per_second)


@dataclass(frozen=True)
class Sustained:
    """What a device sustains."""

    frames_per_second: float
    rate: TokenRate
    stream_share: float
    """Device seconds that a second of one stream's video takes."""

    @property
    def num_streams(self) -> int:
        """Streams that are played without a stall, if all are resident."""
        return int(SHARE_FOR_LIVE / self.stream_share)

    @property
    def fastest(self) -> float:
        """Frames per second at which a single stream takes all that is given out."""
        return self.frames_per_second * SHARE_FOR_LIVE / self.stream_share


def parse_speed(written: str) -> float:
    """Reads "16fps" or "16" as frames per second. Raises ConfigError."""
    match = re.fullmatch(f"{_NUMBER}(?:fps)?", written.replace(" ", ""), re.ASCII)
    speed = float(match[1]) if match else 0.0
    if not 0 < speed <= MOST_SPEED:
        raise ConfigError(
            f"{shown(written)} is not a speed; write the frames per second of a viewer, above 0 and at most "
            f"{MOST_SPEED:g}, such as 16fps"
        )
    return speed


def parse_rate(written: str) -> TokenRate:
    """Reads "20000", or "20000/15000" where commit passes have a rate of their own. Raises ConfigError."""
    match = re.fullmatch(f"{_NUMBER}(?:/{_NUMBER})?", written.replace(" ", ""), re.ASCII)
    rates = [float(number) for number in match.groups() if number is not None] if match else [0.0]
    if not all(0 < rate <= MOST_TOKENS for rate in rates):
        raise ConfigError(
            f"{shown(written)} is not a rate; write the tokens per second of the device, above 0 and at most "
            f"{MOST_TOKENS}, or DENOISE/COMMIT such as 20000/15000"
        )
    return TokenRate(rates[0], rates[-1], "given by --tokens-per-second")


def work(question: Question) -> Work:
    """What a stream of the card costs. A memory that is rebuilt is committed anew for all frames denoised together."""
    card, tokens = question.card, question.card.tokens_per_frame(question.resolution)
    num_branches = question.size.num_branches
    commits_per_frame = 1.0
    if isinstance(question.look_back, RebuiltLookBack):
        commits_per_frame = question.look_back.memory_frames / card.frames_in_flight
    forwards_per_frame = card.denoise_steps * (card.forwards_per_step or num_branches)
    return Work(denoise_tokens=tokens * forwards_per_frame, commit_tokens=tokens * num_branches * commits_per_frame)


def sustained(question: Question, frames_per_second: float, rate: TokenRate) -> Sustained:
    """What the device sustains of this model at this resolution. `frames_per_second` counts frames of the video."""
    card = question.card
    latent_frames_per_second = frames_per_second * card.latent_frames_per_second / card.frames_per_second
    share = rate.token_seconds.share(work(question), latent_frames_per_second)
    return Sustained(frames_per_second, rate, share)
