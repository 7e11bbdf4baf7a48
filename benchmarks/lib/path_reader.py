"""Names the motion of a path: that motion of the demo world whose closed-form path, started best, comes closest.

Axes: M candidates (a motion with a phase), F frames; 2 is (x, y) in pixels. The frame is a torus.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from pagedvid.models.demo.world import FRAME_SIZE, MOTIONS, Thing

PATH_TOLERANCE = 1.5
"""Largest mean distance in pixels between a path and the path of the motion that it is named after."""
NUM_PHASES = 96
"""Number of phases tried for motions that have one. Paths of neighbouring phases are at most 0.3 pixels apart."""
PHASED_MOTIONS = ("circling", "bouncing")


def wrapped(distance: np.ndarray) -> np.ndarray:
    """Signed distances on the torus, -16 to 16."""
    return np.mod(distance + FRAME_SIZE / 2, FRAME_SIZE) - FRAME_SIZE / 2


def fit_path(centers_F2: np.ndarray, frames_F: np.ndarray) -> Thing | None:
    """A thing that moves along the given places; only its motion, home and phase mean anything.

    None if no motion comes within `PATH_TOLERANCE`, or if less than half of the places are known (not NaN).
    """
    known_F = ~np.isnan(centers_F2[:, 0])
    if 2 * known_F.sum() < len(known_F):
        return None
    things, paths_MF2 = _candidates(tuple(frames_F))
    apart_MF2 = centers_F2[known_F] - paths_MF2[:, known_F]
    phasor_M2 = np.exp(2j * math.pi / FRAME_SIZE * apart_MF2).mean(axis=1)
    homes_M2 = np.angle(phasor_M2) * FRAME_SIZE / (2 * math.pi)
    homes_M2 = homes_M2 + np.median(wrapped(apart_MF2 - homes_M2[:, None]), axis=1)
    rest_MF2 = wrapped(apart_MF2 - homes_M2[:, None])
    distances_M = np.hypot(rest_MF2[..., 0], rest_MF2[..., 1]).mean(axis=1)
    best = int(distances_M.argmin())
    if distances_M[best] > PATH_TOLERANCE:
        return None
    x, y = homes_M2[best] % FRAME_SIZE
    return dataclasses.replace(things[best], x=float(x), y=float(y))


@functools.lru_cache(maxsize=16)
def _candidates(frames: tuple[float, ...]) -> tuple[list[Thing], np.ndarray]:
    """All motions in all phases, with their home at (0, 0), and their paths [M, F, 2]."""
    phases = np.arange(NUM_PHASES) * (2 * math.pi / NUM_PHASES)
    things = [
        Thing("circle", "red", "small", motion, 0.0, 0.0, float(phase))
        for motion in MOTIONS
        for phase in (phases if motion in PHASED_MOTIONS else (0.0,))
    ]
    return things, np.stack([thing.centers(np.array(frames)) for thing in things])
