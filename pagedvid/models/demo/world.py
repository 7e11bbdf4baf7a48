"""The demo world: coloured shapes moving in named ways on plain backgrounds, drawn without any library but numpy.

A `Scene` is a background and a tuple of `Thing`s, each with a closed-form path, so any frame of an endless video can be
drawn on its own. Coordinates are pixels of a 32 x 32 frame, x to the right and y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

FRAME_SIZE = 32
"""Height and width of a frame in pixels."""

COLORS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (230, 30, 35),
        "orange": (255, 140, 20),
        "yellow": (255, 230, 60),
        "green": (40, 200, 70),
        "blue": (50, 100, 255),
        "purple": (170, 60, 220),
        "white": (245, 245, 245),
    }
)
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "black": (10, 10, 14),
        "gray": (104, 104, 108),
        "navy": (16, 22, 84),
        "teal": (0, 88, 88),
        "brown": (92, 52, 22),
    }
)
HALF_WIDTHS: Mapping[str, float] = MappingProxyType({"small": 5.5, "large": 8.0})
"""Half of a thing's width in pixels."""

KINDS = ("circle", "square", "triangle", "cross")
MOTIONS = ("left", "right", "up", "down", "circling", "bouncing", "still")

SPEED = 1.25
"""Pixels per frame."""
START_SPREAD = 3.0
"""Most pixels between a random thing's start and the middle of the frame, along each axis."""
HEADING_SPREAD = 0.3
"""Most radians between a random thing's heading and the usual one of its motion."""

_DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0), "still": (0.0, 0.0)}
_ORBIT_RADIUS = 7.5


@dataclass(frozen=True)
class Thing:
    """One object; `x`, `y` is its centre at frame 0, `heading` an angle in radians.

    `heading` is the phase on the orbit of a circling thing and the first direction of a bouncing one; otherwise unused.
    """

    kind: str
    color: str
    size: str
    motion: str
    x: float
    y: float
    heading: float

    def centers(self, frames_F: np.ndarray) -> np.ndarray:
        """Centres at the given frame numbers, float64 [F, 2] as (x, y); they are not wrapped into the frame."""
        start = np.array([self.x, self.y])
        if self.motion == "circling":
            angles_F = self.heading + frames_F * (SPEED / _ORBIT_RADIUS)
            middle = FRAME_SIZE / 2
            return middle + _ORBIT_RADIUS * np.stack([np.cos(angles_F), np.sin(angles_F)], axis=-1)
        if self.motion == "bouncing":
            margin = HALF_WIDTHS[self.size]
            span = FRAME_SIZE - 2 * margin
            velocity = SPEED * np.array([math.cos(self.heading), math.sin(self.heading)])
            unfolded_F2 = np.mod(start - margin + frames_F[:, None] * velocity, 2 * span)
            return margin + span - np.abs(unfolded_F2 - span)
        return start + frames_F[:, None] * (SPEED * np.array(_DIRECTIONS[self.motion]))


@dataclass(frozen=True)
class Scene:
    """What a video shows: things in painting order on one background."""

    things: tuple[Thing, ...]
    background: str


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene with one thing near the middle at frame 0; every named attribute is drawn uniformly and independently.

    Where a thing starts and heads varies little: what a prompt leaves open, a small model has to guess from noise.
    """
    size = str(rng.choice(list(HALF_WIDTHS)))
    motion = str(rng.choice(MOTIONS))
    x, y = FRAME_SIZE / 2 + rng.uniform(-START_SPREAD, START_SPREAD, size=2)
    # Up-most point of the orbit for a circling thing, down and to the right for a bouncing one.
    heading = -math.pi / 2 if motion == "circling" else math.pi / 4
    thing = Thing(
        kind=str(rng.choice(KINDS)),
        color=str(rng.choice(list(COLORS))),
        size=size,
        motion=motion,
        x=float(x),
        y=float(y),
        heading=heading + float(rng.uniform(-HEADING_SPREAD, HEADING_SPREAD)),
    )
    return Scene(things=(thing,), background=str(rng.choice(list(BACKGROUNDS))))


def _distance(kind: str, half_width: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the outline in pixels (negative inside), for coordinates relative to the centre."""
    if kind == "circle":
        return np.hypot(x, y) - half_width
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - half_width
    if kind == "triangle":
        # Apex (0, -half_width), base from (-half_width, half_width) to (half_width, half_width).
        sides = (2 * np.abs(x) - (y + half_width)) / math.sqrt(5)
        return np.maximum(sides, y - half_width)
    if kind == "cross":
        bar = half_width * 0.36
        upright = np.maximum(np.abs(x) - bar, np.abs(y) - half_width)
        level = np.maximum(np.abs(x) - half_width, np.abs(y) - bar)
        return np.minimum(upright, level)
    raise ValueError(f"unknown kind {kind!r}; known kinds: {', '.join(KINDS)}")


def coverage(thing: Thing, frames_F: np.ndarray) -> np.ndarray:
    """How much of each pixel the thing covers, float64 [F, 32, 32] in 0..1; what leaves at an edge enters opposite."""
    pixels = np.arange(FRAME_SIZE) + 0.5
    half = FRAME_SIZE / 2
    centers_F2 = thing.centers(frames_F)
    x_FW = np.mod(pixels - centers_F2[:, :1] + half, FRAME_SIZE) - half
    y_FH = np.mod(pixels - centers_F2[:, 1:] + half, FRAME_SIZE) - half
    distance = _distance(thing.kind, HALF_WIDTHS[thing.size], x_FW[:, None, :], y_FH[:, :, None])
    return np.clip(0.5 - distance, 0.0, 1.0)


def render(scene: Scene, frames_F: np.ndarray) -> np.ndarray:
    """Draw the given frame numbers: float32 [F, 32, 32, 3] in 0..1, anti-aliased."""
    background = np.array(BACKGROUNDS[scene.background]) / 255
    image = np.broadcast_to(background, (len(frames_F), FRAME_SIZE, FRAME_SIZE, 3))
    for thing in scene.things:
        cover = coverage(thing, frames_F)[..., None]
        image = image * (1 - cover) + np.array(COLORS[thing.color]) / 255 * cover
    return image.astype(np.float32)
