"""Measure how far videos of the demo model do what their prompts say: color, background, kind, size and motion.

python tools/demo_score.py --videos 56 --frames 96

Scenes are drawn at random, described in full, generated with a plain dense cache, and read back from the pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demo_sheet import generate

from pagedvid.models.demo.captions import caption
from pagedvid.models.demo.model import DemoModel
from pagedvid.models.demo.world import (
    BACKGROUNDS,
    COLORS,
    FRAME_SIZE,
    HALF_WIDTHS,
    KINDS,
    SPEED,
    Thing,
    coverage,
    random_scene,
)

PATH_TOLERANCE = 1.5
"""Mean distance in pixels between a video's path and the nearest path of the named motion."""


@dataclass(frozen=True)
class Reading:
    """What the pixels of one video show."""

    color: str
    background: str
    kind: str
    size: str
    overlap: float
    """Intersection over union with the best-fitting drawing, mean over the frames."""
    path_F2: np.ndarray


def read_video(frames_FHWC: np.ndarray) -> Reading:
    """Name what a uint8 video shows: nearest color per pixel, centre of mass, best-fitting drawing."""
    pixels = frames_FHWC.astype(float)
    palette = np.array([*COLORS.values(), *BACKGROUNDS.values()], float)
    nearest = np.linalg.norm(pixels[..., None, :] - palette, axis=-1).argmin(axis=-1)
    counts = np.bincount(nearest.ravel(), minlength=len(palette))
    color = list(COLORS)[counts[: len(COLORS)].argmax()]
    background = list(BACKGROUNDS)[counts[len(COLORS) :].argmax()]
    ground = np.array(BACKGROUNDS[background], float)
    line = np.array(COLORS[color], float) - ground
    cover_FHW = np.clip((pixels - ground) @ line / (line @ line), 0, 1)
    mass_F2 = center_of_mass(cover_FHW)
    fits = {}
    for kind in KINDS:
        for size in HALF_WIDTHS:
            middle = Thing(kind, color, size, "still", 16.0, 16.0, 0.0)
            offset = center_of_mass(coverage(middle, np.zeros(1)))[0] - 16.0
            path_F2 = mass_F2 - offset
            drawn = np.concatenate(
                [coverage(Thing(kind, color, size, "still", x, y, 0.0), np.zeros(1)) for x, y in path_F2]
            )
            union = np.maximum(drawn, cover_FHW).sum(axis=(1, 2))
            fits[kind, size] = (np.minimum(drawn, cover_FHW).sum(axis=(1, 2)) / union).mean(), path_F2
    (kind, size), (overlap, path_F2) = max(fits.items(), key=lambda item: item[1][0])
    return Reading(color, background, kind, size, float(overlap), path_F2)


def center_of_mass(cover_FHW: np.ndarray) -> np.ndarray:
    """Centre of mass per frame, [F, 2] as (x, y), on the torus that the frame is."""
    circle = np.exp(2j * np.pi * (np.arange(FRAME_SIZE) + 0.5) / FRAME_SIZE)
    means = np.stack([cover_FHW.sum(axis=1) @ circle, cover_FHW.sum(axis=2) @ circle], axis=1)
    return np.mod(np.angle(means) / (2 * np.pi), 1) * FRAME_SIZE


def wrapped(distance: np.ndarray) -> np.ndarray:
    """Signed distances on the torus, in -16..16."""
    return np.mod(distance + FRAME_SIZE / 2, FRAME_SIZE) - FRAME_SIZE / 2


def follows(path_F2: np.ndarray, motion: str, size: str) -> bool:
    """Whether a path stays close to the named motion from the best start; bouncing is judged by its steps."""
    frames_F = np.arange(len(path_F2))
    if motion == "bouncing":
        steps_F2 = wrapped(np.diff(path_F2, axis=0))
        usual_2 = np.median(np.abs(steps_F2), axis=0)
        turns = all((steps > 0.3).any() and (steps < -0.3).any() for steps in steps_F2.T)
        inside = np.abs(path_F2 - 16).max() <= 16 - HALF_WIDTHS[size] + PATH_TOLERANCE
        if follows(path_F2, "circling", size):
            return False
        return bool(turns and inside and abs(np.hypot(*usual_2) - SPEED) < 0.3 and usual_2.min() > 0.4 * SPEED)
    if motion == "circling":
        starts = [Thing("circle", "red", size, motion, 0, 0, angle) for angle in np.arange(0, 6.28, 0.02)]
        return bool(min(np.hypot(*(path_F2 - start.centers(frames_F)).T).mean() for start in starts) < PATH_TOLERANCE)
    straight_F2 = Thing("circle", "red", size, motion, 0, 0, 0).centers(frames_F)
    apart_F2 = np.unwrap(path_F2 - straight_F2, axis=0, period=FRAME_SIZE)
    return bool(np.hypot(*(apart_F2 - np.median(apart_F2, axis=0)).T).mean() < PATH_TOLERANCE)


def score(model: DemoModel, seed: int, num_chunks: int, num_denoise_steps: int) -> dict[str, object]:
    """Generate one random scene and say which of its attributes the video shows."""
    scene = random_scene(np.random.default_rng([seed, 99]))
    thing = scene.things[0]
    frames = np.concatenate(list(generate(model, caption(scene), seed, num_chunks, num_denoise_steps)))
    reading = read_video(frames)
    return {
        "prompt": caption(scene),
        "color": reading.color == thing.color,
        "background": reading.background == scene.background,
        "kind": reading.kind == thing.kind,
        "size": reading.size == thing.size,
        "motion": follows(reading.path_F2, thing.motion, thing.size),
        "overlap": round(reading.overlap, 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of exported weights; default: the shipped ones")
    parser.add_argument("--videos", type=int, default=56)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--denoise-steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1000, help="of the first video; the next ones count up")
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(parsed.threads)
    model = DemoModel.load(parsed.weights)
    num_chunks = -(-parsed.frames // model.geometry.frames_per_chunk)
    rows = []
    for seed in range(parsed.seed, parsed.seed + parsed.videos):
        rows.append(score(model, seed, num_chunks, parsed.denoise_steps))
        print(json.dumps(rows[-1]), flush=True)
    columns = ("color", "background", "kind", "size", "motion", "overlap")
    print(json.dumps({column: round(float(np.mean([row[column] for row in rows])), 3) for column in columns}))


if __name__ == "__main__":
    main()
