"""The lab on an untrained model: its loop makes the frames of the engine, and reads the history that it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lib.caches import Case
from lib.lab import Lab
from lib.quality import draw_tasks
from pagedvid.models.demo.weights import load_demo


def test_loop_and_engine_make_the_same_frames(weights: Path) -> None:
    requests = [task.request for task in draw_tasks(2, 0)]
    lab = Lab(load_demo(weights), requests, num_frames=24, num_denoise_steps=2, weights=weights)
    case = Case("int2", "measured")
    made = lab.loop(lab.cache(case)).generate()
    frames = made.whole_videos()
    difference = np.abs(frames.astype(int) - lab.engine_frames(lab.cache(case)).astype(int))
    assert frames.std() > 1 and difference.max() <= 1 and difference.mean() < 0.01
    forced = lab.loop(lab.cache(case)).generate(history=made.latents)
    torch.testing.assert_close(forced.latents, made.latents)
    other = lab.loop(lab.cache(case)).generate(history=[-latents for latents in made.latents])
    assert (other.latents[1] - made.latents[1]).abs().max() > 1e-3
