"""Trips of the walk model, out and back by the same way: every view of the way out comes again on the way back.

frame   0   1   2  ...  M-1   M  M+1  ...  2M-1   2M
view    a   b   c        y    z   y         b     a          view a is seen again 2 M frames later, y after 2
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.lab import engine_videos
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_sizes import stream_bytes, window_bits_per_value
from pagedvid.cache.window import Window
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import VideoRequest
from pagedvid.models.build import RunSpec
from pagedvid.models.walk.actions import MOVES
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.models.walk.score import read_landmarks, same_landmarks
from pagedvid.models.walk.spec import FRAMES_PER_CHUNK, VIEW_CELLS
from pagedvid.models.walk.world import render
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.quality.metrics import psnr

LEG_FRAMES = (6, 20)
"""Fewest and most frames in one direction."""
WAYS = (("right", "down"), ("right", "up"), ("left", "down"), ("left", "up"))
"""The two directions of a way out; it never crosses itself."""
REACH_FRAMES = 16
BACK = {
    name: next(back for back, move in MOVES.items() if move == (-down, -right)) for name, (down, right) in MOVES.items()
}


@dataclass(frozen=True)
class Trip:
    """One video."""

    map_seed: int
    legs: tuple[tuple[str, int], ...]
    """Action and number of frames of each leg of the way out."""

    @property
    def prompt(self) -> str:
        """What the model is asked for."""
        legs = [*self.legs, *((BACK[action], count) for action, count in reversed(self.legs))]
        return f"map {self.map_seed}: " + ", ".join(f"{action} {count}" for action, count in legs)


def draw_trips(num_trips: int, num_frames_out: int, seed: int) -> list[Trip]:
    """Trips on maps of their own; a larger number continues the list of a smaller one."""
    return [_draw_trip(number, num_frames_out, np.random.default_rng([seed, number])) for number in range(num_trips)]


def _draw_trip(number: int, num_frames_out: int, rng: np.random.Generator) -> Trip:
    way, legs, left = WAYS[number % len(WAYS)], [], num_frames_out
    while left:
        count = min(left, int(rng.integers(LEG_FRAMES[0], LEG_FRAMES[1] + 1)))
        legs.append((way[len(legs) % 2], count))
        left -= count
    return Trip(int(rng.integers(2**31)), tuple(legs))


def walk(model: WalkModel, run: RunSpec, trips: Sequence[Trip], num_frames_out: int) -> list[np.ndarray]:
    """Frames of every trip with that cache, uint8 [2 M + 1, 64, 64, 3]."""
    window = Window(run.window.sink_chunks, run.window.recent_chunks, model.positions)
    cache = PagedKVCache(run.cache, len(trips) * most_bytes(run.cache, window), tables=run.tables)
    requests = [VideoRequest(str(n), trip.prompt, 2 * num_frames_out + 1, seed=n) for n, trip in enumerate(trips)]
    videos = engine_videos(Engine(model, cache, window), requests)
    return [videos[request.id] for request in requests]


def most_bytes(spec: CacheSpec, window: Window) -> int:
    """Most bytes that the stream of one trip holds, everything counted."""
    return stream_bytes(spec.shape, window, spec.codecs, _chunk_tokens(spec))


def bits_per_value(spec: CacheSpec, window: Window) -> float:
    """Stored bits per element of a full window, everything counted."""
    return window_bits_per_value(spec.shape, window, spec.codecs, _chunk_tokens(spec))


def _chunk_tokens(spec: CacheSpec) -> int:
    return FRAMES_PER_CHUNK * spec.tokens_per_frame


@dataclass(frozen=True)
class Revisits:
    """What is there again, by frames between two visits, ascending; lists over these distances."""

    distances: list[int]
    num_landmarks: list[int]
    """At the first visits of all trips."""
    num_same: list[int]
    """Of the same kind at the same place, within a pixel, at the second visits."""
    psnr: list[float]
    """Of the second visits to the first ones, mean over the trips."""
    truth_psnr: float
    """Of the last frame to the map itself, of which the first frames were given; mean over the trips."""

    def reach(self, percent: float) -> int:
        """The farthest distance up to which so many landmarks are there again; 0: not even at the nearest one.

        Read over `REACH_FRAMES` at a time, so that a single view that failed does not end it.
        """
        reached = 0
        for distance in self.distances:
            if self.accuracy(distance - REACH_FRAMES + 1, distance) < percent:
                break
            reached = distance
        return reached

    def accuracy(self, nearest: int, farthest: int) -> float:
        """Percentage of landmarks that are there again, over revisits after `nearest` to `farthest` frames; NaN: there
        were none."""
        chosen = [place for place, distance in enumerate(self.distances) if nearest <= distance <= farthest]
        num_landmarks = sum(self.num_landmarks[i] for i in chosen)
        return 100 * sum(self.num_same[i] for i in chosen) / num_landmarks if num_landmarks else math.nan


def score(trips: Sequence[Trip], videos: Sequence[np.ndarray], every: int) -> Revisits:
    """The revisits after every `every`-th number of frames."""
    num_frames_out = len(videos[0]) // 2
    counts: Mapping[int, list[tuple[int, int, float]]] = {
        distance: [] for distance in range(every, 2 * num_frames_out + 1, every)
    }
    for video in videos:
        for distance, found in counts.items():
            first, again = video[num_frames_out - distance // 2], video[num_frames_out + distance // 2]
            landmarks = read_landmarks(first)
            found.append((len(landmarks), same_landmarks(landmarks, read_landmarks(again)), psnr(first, again)))
    truths = [render(trip.map_seed, 0, 0, VIEW_CELLS, VIEW_CELLS) for trip in trips]
    return Revisits(
        list(counts),
        [sum(number for number, _, _ in found) for found in counts.values()],
        [sum(number for _, number, _ in found) for found in counts.values()],
        [round(float(np.mean([value for _, _, value in found])), 2) for found in counts.values()],
        round(float(np.mean([psnr(truth, video[-1]) for truth, video in zip(truths, videos, strict=True)])), 2),
    )
