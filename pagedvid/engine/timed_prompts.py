"""Prompts by time: the list "prompts" of a prompts file or a request, and the frames from which its entries count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pagedvid.engine.requests import LaterPrompt
from pagedvid.errors import ConfigError
from pagedvid.shown import shown, unknown

FIELDS = ("at_seconds", "prompt", "recache")
_EXAMPLE = '[{"at_seconds": 0, "prompt": "a red circle"}, {"at_seconds": 2, "prompt": "a blue circle"}]'
_ROUNDING = 1e-6
"""Of a time in frames: 0.1 s at 30 frames per second is frame 3."""

_MOST_SECONDS = 1_000_000_000
"""Of a video of the most frames at the lowest speed."""


@dataclass(frozen=True)
class TimedPrompt:
    """One entry after the first."""

    at_seconds: float
    prompt: str
    recache: bool


def read_timed_prompts(value: object) -> tuple[str, tuple[TimedPrompt, ...]]:
    """The first prompt, and those that follow. Raises ConfigError for anything but a list of entries that begins at 0
    and whose times rise."""
    if not isinstance(value, list) or not value:
        raise ConfigError(f'"prompts" is {shown(value)}; it must be a list such as {_EXAMPLE}')
    entries = [_entry(number, each) for number, each in enumerate(value, start=1)]
    first, *later = entries
    if first.at_seconds != 0 or first.recache:
        raise ConfigError(
            f'entry 1 of "prompts" has "at_seconds" {first.at_seconds:g} and "recache" {first.recache}; the first '
            "prompt begins at 0, where there is nothing to store again"
        )
    for number, (before, entry) in enumerate(zip(entries, later, strict=False), start=2):
        if entry.at_seconds <= before.at_seconds:
            raise ConfigError(
                f'entry {number} of "prompts" is at {entry.at_seconds:g} s, the one before it at '
                f"{before.at_seconds:g} s; the times must ascend"
            )
    return first.prompt, tuple(later)


def _entry(number: int, value: object) -> TimedPrompt:
    place = f'entry {number} of "prompts"'
    if not isinstance(value, dict):
        raise ConfigError(f"{place} is {shown(value)}; it must be an object with {', '.join(FIELDS)}")
    for name in value:
        if name not in FIELDS:
            raise ConfigError(f"{place}: unknown field {unknown(name, FIELDS)}")
    seconds, prompt, recache = value.get("at_seconds"), value.get("prompt"), value.get("recache", False)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds <= _MOST_SECONDS:
        raise ConfigError(f'{place}: "at_seconds" is {shown(seconds)}; it must be a number from 0 to {_MOST_SECONDS:,}')
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f'{place}: "prompt" is {shown(prompt)}; it must be a non-empty string')
    if not isinstance(recache, bool):
        raise ConfigError(f'{place}: "recache" is {shown(recache)}; it must be true or false')
    return TimedPrompt(float(seconds), prompt.strip(), recache)


def later_prompts(
    timed: Sequence[TimedPrompt],
    num_frames: int,
    frames_per_second: float,
    frames_per_latent: int,
    of_first_latent: int = 1,
) -> tuple[LaterPrompt, ...]:
    """The same by latent frames of a video of `num_frames`: each from the first latent frame at or after its time.

    `frames_per_second`: at which the video is played. `of_first_latent`: frames that the first latent frame gives; it
    is a single one unless the video goes on from given frames. Raises ConfigError for a time beyond the end.
    """
    found: list[LaterPrompt] = []
    for entry in timed:
        frame = math.ceil(entry.at_seconds * frames_per_second - _ROUNDING)
        latent = 0 if frame <= 0 else 1 - min(0, of_first_latent - frame) // frames_per_latent
        if latent >= num_frames:
            seconds = (of_first_latent + frames_per_latent * (num_frames - 1)) / frames_per_second
            raise ConfigError(
                f"the prompt {shown(entry.prompt)} at {entry.at_seconds:g} s is beyond the end of the video, which has "
                f"{num_frames} (latent) frames and lasts {seconds:g} s; give it an earlier time, or more frames"
            )
        if latent <= (found[-1].first_frame if found else 0):
            raise ConfigError(
                f"the prompt {shown(entry.prompt)} at {entry.at_seconds:g} s begins in the same (latent) frame as the "
                "one before it; give it more time, or leave one of them out"
            )
        found.append(LaterPrompt(latent, entry.prompt, entry.recache))
    return tuple(found)
