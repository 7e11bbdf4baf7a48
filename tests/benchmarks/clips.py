"""Rendered clips of the demo world, in the form that the benchmarks read."""

from __future__ import annotations

import numpy as np

from pagedvid.models.demo.world import Scene, render


def draw_clip(scene: Scene, first_frame: int = 0, num_frames: int = 24) -> np.ndarray:
    """uint8 [F, 32, 32, 3]."""
    frames_F = np.arange(first_frame, first_frame + num_frames, dtype=float)
    return np.round(render(scene, frames_F) * 255).astype(np.uint8)


def disturbed(clip: np.ndarray, rng: np.random.Generator, noise: float = 8.0, tint: float = 5.0) -> np.ndarray:
    """The clip with Gaussian noise and one shift of all colors; standard deviations in 0..255."""
    spoiled = clip + rng.normal(scale=noise, size=clip.shape) + rng.normal(scale=tint, size=3)
    return np.clip(np.round(spoiled), 0, 255).astype(np.uint8)
