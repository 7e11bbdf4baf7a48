"""The lab on an untrained model: its loop is the engine's, and the given history is the one that is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pagedvid.models.demo.weights import load_demo


def test_loop_and_engine_make_the_same_frames(weights: Path) -> None:
    from caches import Case
    from lab import Lab, frames_of
    from quality_scores import draw_tasks

    requests = [task.request for task in draw_tasks(2, 0)]
    lab = Lab(load_demo(weights), requests, num_frames=24, num_denoise_steps=2, weights=weights)
    case = Case("int2", "measured")
    made = lab.forced(lab.cache(case)).generate()
    frames = frames_of(made)
    difference = np.abs(frames.astype(int) - lab.engine_frames(lab.cache(case)).astype(int))
    assert frames.std() > 1 and difference.max() <= 1 and difference.mean() < 0.01
    forced = lab.forced(lab.cache(case)).generate(history=made.latents)
    torch.testing.assert_close(forced.latents, made.latents)
    other = lab.forced(lab.cache(case)).generate(history=[-latents for latents in made.latents])
    assert (other.latents[1] - made.latents[1]).abs().max() > 1e-3


def test_processes_only_share_the_work(weights: Path) -> None:
    from caches import Case
    from lab import Lab
    from quality_scores import draw_tasks
    from video_level import Bench, Job, measure_jobs

    tasks = draw_tasks(2, 0)
    lab = Lab(load_demo(weights), [task.request for task in tasks], 24, 1, weights)
    bench = Bench.of(lab, tasks)
    jobs = [Job(Case("int2"), is_forced=True), Job(Case("RTN2 g64", "variance"))]
    assert measure_jobs(bench, jobs, 1) == measure_jobs(bench, jobs, 2)
