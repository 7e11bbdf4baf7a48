"""The demo world: one or two coloured shapes moving in named ways on plain backgrounds, drawn with numpy alone.

A `Scene` is a background and a tuple of `Thing`s, each with a closed-form path, so any frame of an endless video can be
drawn on its own. Coordinates are pixels of a 32 x 32 frame, x to the right and y downwards. What leaves the frame at an
edge enters opposite.

     one thing          two things
    +---------+         +---------+
    |         |         | first   |
    |    o    |  homes  |  o      |      a thing stays at, crosses, circles around or bounces below its home
    |         |         |      o  |
    +---------+         +--second-+
"""

from __future__ import annotations

import math
import zlib
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
HALF_WIDTHS: Mapping[str, float] = MappingProxyType({"small": 4.5, "large": 7.0})
"""Half of a thing's width in pixels."""

KINDS = ("circle", "square", "triangle", "cross")
MOTIONS = ("left", "right", "up", "down", "circling", "bouncing", "still")

HOMES: Mapping[int, tuple[tuple[float, float], ...]] = MappingProxyType(
    {1: ((16.0, 16.0),), 2: ((9.0, 9.0), (23.0, 23.0))}
)
"""Where things are at home as (x, y), by how many things the scene has."""

SPEED = 1.25
"""Pixels per frame of straight and circling motions."""
ORBIT_RADIUS = 5.0
"""Pixels between a circling thing and its home."""
BOUNCE_HEIGHT, BOUNCE_FRAMES = 9.0, 16.0
"""A bouncing thing leaves the ground, half the height below its home, once every 16 frames."""
HOME_SPREAD = 2.0
"""Most pixels between a random thing's home and the usual one, along each axis."""
PHASE_SPREAD = 0.3
"""Most radians between a random thing's phase and the usual one."""
HELD_OUT_PART = 8
"""One in so many combinations of a thing's attributes and the background is never drawn for training."""

_DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0), "still": (0.0, 0.0)}


@dataclass(frozen=True)
class Thing:
    """One object; `x`, `y` is its home, `phase` (radians) where on its orbit or in its bounce it is at frame 0.

    Straight motions start at home and have no phase.
    """

    kind: str
    color: str
    size: str
    motion: str
    x: float
    y: float
    phase: float = 0.0

    def centers(self, frames_F: np.ndarray) -> np.ndarray:
        """Centres at the given frame numbers, float64 [F, 2] as (x, y); they are not wrapped into the frame."""
        home = np.array([self.x, self.y])
        if self.motion == "circling":
            angles_F = self.phase + frames_F * (SPEED / ORBIT_RADIUS)
            return home + ORBIT_RADIUS * np.stack([np.cos(angles_F), np.sin(angles_F)], axis=-1)
        if self.motion == "bouncing":
            # Half waves of a sine: fast at the ground, slow at the top, as a ball does.
            heights_F = BOUNCE_HEIGHT * np.abs(np.sin((self.phase + frames_F * (2 * math.pi / BOUNCE_FRAMES)) / 2))
            return home + np.stack([np.zeros_like(heights_F), BOUNCE_HEIGHT / 2 - heights_F], axis=-1)
        return home + frames_F[:, None] * (SPEED * np.array(_DIRECTIONS[self.motion]))


@dataclass(frozen=True)
class Scene:
    """What a video shows: things in painting order on one background."""

    things: tuple[Thing, ...]
    background: str


def is_held_out(thing: Thing, background: str) -> bool:
    """Whether training never sees this combination of size, color, kind, motion and background."""
    words = f"{thing.size} {thing.color} {thing.kind} {thing.motion} {background}"
    return zlib.crc32(words.encode()) % HELD_OUT_PART == 0


def random_scene(rng: np.random.Generator, num_things: int | None = None, held_out: bool = False) -> Scene:
    """A scene of one or two things (None: either) of different colors; attributes are drawn uniformly.

    With `held_out` every thing is a combination that training never sees, without it none is. Homes and phases vary
    little: what a prompt leaves open, a small model has to guess from noise.
    """
    num_things = int(rng.integers(1, 3)) if num_things is None else num_things
    background = str(rng.choice(list(BACKGROUNDS)))
    things: list[Thing] = []
    while len(things) < num_things:
        thing = _random_thing(rng, HOMES[num_things][len(things)])
        if is_held_out(thing, background) == held_out and all(thing.color != other.color for other in things):
            things.append(thing)
    return Scene(things=tuple(things), background=background)


def _random_thing(rng: np.random.Generator, home: tuple[float, float]) -> Thing:
    x, y = np.array(home) + rng.uniform(-HOME_SPREAD, HOME_SPREAD, size=2)
    motion = str(rng.choice(MOTIONS))
    # Usually the up-most point of the orbit (y grows downwards), and the ground for a bounce.
    phase = {"circling": -math.pi / 2, "bouncing": 0.3}.get(motion, 0.0)
    if motion in ("circling", "bouncing"):
        phase += float(rng.uniform(-PHASE_SPREAD, PHASE_SPREAD))
    return Thing(
        kind=str(rng.choice(KINDS)),
        color=str(rng.choice(list(COLORS))),
        size=str(rng.choice(list(HALF_WIDTHS))),
        motion=motion,
        x=float(x),
        y=float(y),
        phase=phase,
    )


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


def coverage(thing: Thing, frames_F: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """How much of each pixel the thing covers, float64 [F, 32, 32] in 0..1; what leaves at an edge enters opposite.

    `margin`: pixels that its outline is wider than it is drawn.
    """
    pixels = np.arange(FRAME_SIZE) + 0.5
    half = FRAME_SIZE / 2
    centers_F2 = thing.centers(frames_F)
    x_FW = np.mod(pixels - centers_F2[:, :1] + half, FRAME_SIZE) - half
    y_FH = np.mod(pixels - centers_F2[:, 1:] + half, FRAME_SIZE) - half
    distance = _distance(thing.kind, HALF_WIDTHS[thing.size], x_FW[:, None, :], y_FH[:, :, None])
    return np.clip(0.5 + margin - distance, 0.0, 1.0)


def render(scene: Scene, frames_F: np.ndarray) -> np.ndarray:
    """Draw the given frame numbers: float32 [F, 32, 32, 3] in 0..1, anti-aliased."""
    background = np.array(BACKGROUNDS[scene.background]) / 255
    image = np.broadcast_to(background, (len(frames_F), FRAME_SIZE, FRAME_SIZE, 3))
    for thing in scene.things:
        cover = coverage(thing, frames_F)[..., None]
        image = image * (1 - cover) + np.array(COLORS[thing.color]) / 255 * cover
    return image.astype(np.float32)
