"""Reads a clip of the demo world from its pixels: the background, and color, kind, size and motion of every thing.

Plain image processing without a learned part. What cannot be named reads as None, and None is never right.

1. Every pixel gets the nearest color of the palette, or none if it is far from all of them. The background is the
   ground color that fills most pixels. A color that fills enough pixels of the median frame is a thing.
2. The share of a pixel that a thing covers is the pixel's position on the line from the background's color to the
   thing's. With several things, a pixel belongs to the one whose line is closest, and hides the others.
3. Templates of all kinds and sizes are matched at all positions of the torus (by Fourier transform). The one with the
   least squared difference over the clip names kind and size; its position in every frame is the path. What has no
   position in most frames is not a thing.
4. The path is compared with the paths of all motions (path_reader.py).

Axes: F frames, H height, W width, C color channel, K templates.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lib.path_reader import fit_path, wrapped
from pagedvid.models.demo.vocabulary import ATTRIBUTES
from pagedvid.models.demo.world import BACKGROUNDS, COLORS, FRAME_SIZE, HALF_WIDTHS, KINDS, Scene, Thing, coverage

COLOR_TOLERANCE = 60.0
"""Largest distance in RGB (0..255) from a named color. No mixture of a background and a thing is so close to a third
color, so the soft edge of a thing never reads as another thing."""
MIN_GROUND_SHARE = 0.4
"""Smallest share of pixels in the background's color. Two large squares leave 0.6."""
MIN_THING_PIXELS = 10
"""Fewest pixels of a thing's color in the median frame. The thinnest thing has 30."""
HIDING_COVER = 0.2
"""A pixel is ignored for a thing if another thing covers more than this share of it."""
MIN_FIT = 0.85
"""Smallest agreement of a clip with the best template, 1 - squared difference / (squares of both)."""
MIN_FRAME_FIT = 0.5
"""The same in one frame. If it is lower, or less than this share of the thing is in view, the place is unknown."""
CONTINUATION_TOLERANCE = 2.0
"""Largest mean distance in pixels between a path and what the path of an earlier clip predicts."""


@dataclass(frozen=True)
class ThingReading:
    """What is read of one thing; by default nothing, as if there were no thing."""

    color: str | None = None
    kind: str | None = None
    size: str | None = None
    motion: str | None = None
    path: Thing | None = field(default=None, compare=False)
    """A thing that moves like this one; None if no motion fits."""
    centers_F2: np.ndarray = field(default_factory=lambda: np.empty((0, 2)), compare=False)
    """Places as (x, y) in 0..32; NaN while it is not seen."""


@dataclass(frozen=True)
class SceneReading:
    """What is read of a clip."""

    background: str | None
    things: tuple[ThingReading, ...]
    """As many as expected, those with the most pixels first; missing ones are `ThingReading()`."""
    num_things: int
    """How many things are in view, expected or not."""
    frames_F: np.ndarray
    """The clip's frame numbers."""


def read_scene(frames_FHWC: np.ndarray, num_things: int, first_frame: int = 0) -> SceneReading:
    """Reads a clip, uint8 [F, 32, 32, 3], that should show `num_things` things and starts at `first_frame` of a video.

    Raises ValueError for other shapes and types.
    """
    if frames_FHWC.dtype != np.uint8 or frames_FHWC.ndim != 4 or frames_FHWC.shape[1:] != (FRAME_SIZE, FRAME_SIZE, 3):
        raise ValueError(
            f"the clip is {frames_FHWC.dtype} {list(frames_FHWC.shape)}; it must be uint8 "
            f"[frames, {FRAME_SIZE}, {FRAME_SIZE}, 3]"
        )
    pixels_FHWC = frames_FHWC.astype(np.float32)
    names_FHW = _nearest_names(pixels_FHWC)
    background, ground_C = _read_background(pixels_FHWC, names_FHW)
    found = _find_colors(names_FHW)
    values = [np.median(pixels_FHWC[names_FHW == _NAMES.index(color)], axis=0) for color in found]
    covers = _unmix(pixels_FHWC, ground_C, values)
    frames_F = np.arange(first_frame, first_frame + len(frames_FHWC), dtype=float)
    readings = [_read_thing(color, *cover, frames_F) for color, cover in zip(found, covers, strict=True)]
    things = [thing for thing in readings if thing is not None]
    missing = [ThingReading()] * (num_things - len(things))
    return SceneReading(background, (*things[:num_things], *missing), len(things), frames_F)


def compare(wanted: Scene | SceneReading, seen: SceneReading) -> dict[str, list[bool]]:
    """Which attributes are as wanted: one value for "background", one per wanted thing for every other attribute.

    Things are paired one to one, so that as many colors as possible agree, and then as many attributes as possible.
    """
    pairs = _pair_up(wanted.things, seen.things)
    right = {name: [_agree(a, b, name) for a, b in pairs] for name in ATTRIBUTES}
    return {"background": [_agree(wanted, seen, "background")], **right}


def compare_identity(before: SceneReading, after: SceneReading) -> dict[str, list[bool]]:
    """Which attributes of two clips of a video agree. "path": whether things are where their earlier motion leads."""
    pairs = _pair_up(before.things, after.things)
    return {**compare(before, after), "path": [_continues(a, b, after.frames_F) for a, b in pairs]}


def _pair_up(
    wanted: Sequence[Thing | ThingReading], seen: Sequence[ThingReading]
) -> list[tuple[Thing | ThingReading, ThingReading]]:
    def agreement(things: Sequence[ThingReading]) -> tuple[int, int]:
        agree = {name: sum(map(_agree, wanted, things, itertools.repeat(name))) for name in ATTRIBUTES}
        return agree["color"], sum(agree.values())

    best = max(itertools.permutations(seen, len(wanted)), key=agreement)
    return list(zip(wanted, best, strict=True))


def _agree(a: object, b: object, name: str) -> bool:
    return getattr(a, name) is not None and getattr(a, name) == getattr(b, name)


def _continues(before: Thing | ThingReading, after: ThingReading, frames_F: np.ndarray) -> bool:
    if not isinstance(before, ThingReading) or before.path is None or not len(after.centers_F2):
        return False
    known_F = ~np.isnan(after.centers_F2[:, 0])
    apart_F2 = wrapped(after.centers_F2 - before.path.centers(frames_F))[known_F]
    return 2 * known_F.sum() >= len(known_F) and bool(np.hypot(*apart_F2.T).mean() <= CONTINUATION_TOLERANCE)


# ---------------------------------------------------------------- colors

_NAMES = (*COLORS, *BACKGROUNDS)
_PALETTE = np.array([*COLORS.values(), *BACKGROUNDS.values()], dtype=np.float32)
_UNNAMED = -1


def _nearest_names(pixels_FHWC: np.ndarray) -> np.ndarray:
    """Index in `_NAMES` of every pixel's color, [F, H, W]."""
    squares = (pixels_FHWC**2).sum(axis=-1, keepdims=True) - 2 * pixels_FHWC @ _PALETTE.T + (_PALETTE**2).sum(axis=-1)
    return np.where(squares.min(axis=-1) <= COLOR_TOLERANCE**2, squares.argmin(axis=-1), _UNNAMED)


def _read_background(pixels_FHWC: np.ndarray, names_FHW: np.ndarray) -> tuple[str | None, np.ndarray]:
    """Name of the background, and its color in the clip, [C]."""
    counts = np.bincount(names_FHW[names_FHW >= len(COLORS)], minlength=len(_NAMES))
    most = int(counts.argmax())
    if counts[most] < MIN_GROUND_SHARE * names_FHW.size:
        return None, np.median(pixels_FHWC.reshape(-1, 3), axis=0)
    return _NAMES[most], np.median(pixels_FHWC[names_FHW == most], axis=0)


def _find_colors(names_FHW: np.ndarray) -> list[str]:
    """Colors of the things in view, those with the most pixels first."""
    pixels = {color: np.median((names_FHW == i).sum(axis=(1, 2))) for i, color in enumerate(COLORS)}
    return sorted((color for color in COLORS if pixels[color] >= MIN_THING_PIXELS), key=lambda c: -pixels[c])


def _unmix(
    pixels_FHWC: np.ndarray, ground_C: np.ndarray, values: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every thing: the share of each pixel that it covers, and where no other thing hides it; both [F, H, W]."""
    if not values:
        return []
    apart_FHWC = pixels_FHWC - ground_C
    covers, distances = [], []
    for value_C in values:
        line_C = value_C - ground_C
        cover_FHW = np.clip(apart_FHWC @ line_C / (line_C @ line_C), 0, 1)
        covers.append(cover_FHW)
        distances.append(((apart_FHWC - cover_FHW[..., None] * line_C) ** 2).sum(axis=-1))
    owner_FHW = np.argmin(distances, axis=0)
    owned = [np.where(owner_FHW == i, cover_FHW, 0) for i, cover_FHW in enumerate(covers)]
    total_FHW = np.sum(owned, axis=0)
    return [(cover_FHW, total_FHW - cover_FHW <= HIDING_COVER) for cover_FHW in owned]


# ---------------------------------------------------------------- templates


@functools.cache
def _templates() -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray, np.ndarray]:
    """(kind, size) of all templates, conjugate spectra of their drawings at (0, 0) and of the squares, square sums."""
    names = list(itertools.product(KINDS, HALF_WIDTHS))
    things = [Thing(kind, "red", size, "still", 0.5, 0.5) for kind, size in names]
    drawn_KHW = np.concatenate([coverage(thing, np.zeros(1)) for thing in things]).astype(np.float32)
    spectra = [np.conj(np.fft.rfft2(images)).astype(np.complex64)[:, None] for images in (drawn_KHW, drawn_KHW**2)]
    return names, *spectra, (drawn_KHW**2).sum(axis=(1, 2))


def _read_thing(
    color: str, cover_FHW: np.ndarray, in_view_FHW: np.ndarray, frames_F: np.ndarray
) -> ThingReading | None:
    """None if its place is unknown in most frames: these are pixels of its color, but not a thing."""
    names, drawn, squares, sizes_K = _templates()
    shape = cover_FHW.shape[1:]
    cover_FHW = cover_FHW * in_view_FHW
    in_view = np.fft.rfft2(in_view_FHW)
    power_F = (cover_FHW**2).sum(axis=(1, 2))
    overlap_KFHW = np.fft.irfft2(np.fft.rfft2(cover_FHW) * drawn, s=shape)
    template_KFHW = np.fft.irfft2(in_view * squares, s=shape)
    difference_KFHW = power_F[:, None, None] - 2 * overlap_KFHW + template_KFHW
    y_KF, x_KF = np.divmod(difference_KFHW.reshape(*difference_KFHW.shape[:2], -1).argmin(axis=-1), FRAME_SIZE)
    least_KF, dx_KF, dy_KF = _between_pixels(difference_KFHW, x_KF, y_KF)
    best = int(least_KF.sum(axis=1).argmin())
    seen_F = template_KFHW[best, np.arange(len(power_F)), y_KF[best], x_KF[best]]
    fits_F = 1 - least_KF[best] / (power_F + seen_F + 1e-6)
    fit = 1 - least_KF[best].sum() / (power_F + seen_F).sum()
    known_F = (fits_F >= MIN_FRAME_FIT) & (seen_F >= MIN_FRAME_FIT * sizes_K[best])
    if 2 * known_F.sum() < len(known_F):
        return None
    centers_F2 = np.stack([x_KF[best] + dx_KF[best], y_KF[best] + dy_KF[best]], axis=-1) + 0.5
    centers_F2[~known_F] = np.nan
    path = fit_path(centers_F2, frames_F)
    kind, size = names[best] if fit >= MIN_FIT else (None, None)
    return ThingReading(color, kind, size, None if path is None else path.motion, path, centers_F2)


def _between_pixels(
    values_KFHW: np.ndarray, x_KF: np.ndarray, y_KF: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The minimum around the given pixels, and its offset along x and y, by parabolas through the neighbours."""
    k, f = np.indices(x_KF.shape)
    middle_KF = values_KFHW[k, f, y_KF, x_KF]
    least_KF, offsets = middle_KF, []
    for move_x, move_y in ((1, 0), (0, 1)):
        after_KF = values_KFHW[k, f, (y_KF + move_y) % FRAME_SIZE, (x_KF + move_x) % FRAME_SIZE]
        before_KF = values_KFHW[k, f, y_KF - move_y, x_KF - move_x]
        bend_KF = np.maximum(after_KF + before_KF - 2 * middle_KF, 1e-6)
        offsets.append(np.clip((before_KF - after_KF) / (2 * bend_KF), -0.5, 0.5))
        least_KF = least_KF - (after_KF - before_KF) ** 2 / (8 * bend_KF)
    return np.maximum(least_KF, 0), offsets[0], offsets[1]
