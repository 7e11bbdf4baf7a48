"""Compares two videos frame by frame; no more than two frames of each are in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from pagedvid.errors import ConfigError
from pagedvid.output.mp4 import Frames, frames_of, write_errors
from pagedvid.quality.lpips import Lpips
from pagedvid.quality.metrics import RunningDistance
from pagedvid.quality.pairs import Pair
from pagedvid.shown import named


@dataclass(frozen=True)
class Compared:
    """A pair of videos and how far they are apart."""

    pair: Pair
    values: dict[str, float]
    """See `RunningDistance.values`, and `lpips`, the mean over frames, where it was measured."""


def compare(pair: Pair, lpips: Lpips | None) -> Compared:
    """Raises ConfigError for a video that cannot be read to its end, or has another number of frames than it says."""
    distance, total_lpips = RunningDistance(), 0.0
    for a_HWC, b_HWC in _both_frames(pair):
        distance.add(a_HWC, b_HWC)
        if lpips is not None:
            total_lpips += lpips.distance(a_HWC, b_HWC)
    values = distance.values()
    if lpips is not None:
        values["lpips"] = total_lpips / distance.num_frames
    return Compared(pair, values)


def _both_frames(pair: Pair) -> Iterator[tuple[Frames, Frames]]:
    num_frames = 0
    try:
        for a, b in zip_longest(frames_of(pair.a), frames_of(pair.b)):
            if a is None or b is None:
                break
            num_frames += 1
            yield a, b
        else:
            if num_frames == pair.shape.num_frames:
                return
    except write_errors() as error:
        raise ConfigError(f"{named(pair.a)} or {named(pair.b)} is damaged after frame {num_frames}: {error}") from None
    raise ConfigError(
        f"{named(pair.a)} or {named(pair.b)} is damaged: {pair.shape.num_frames} frames were expected, "
        f"{num_frames} are in both"
    )
