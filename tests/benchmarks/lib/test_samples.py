"""Samples: the demo model's own tensors, and families that are as their names say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lib.samples import capture, draw_family
from pagedvid.models.demo.captions import caption
from pagedvid.models.demo.weights import load_demo
from pagedvid.models.demo.world import random_scene


def small(name: str = "low rank", seed: int = 0):
    return draw_family(name, seed, num_chunks=2, num_frames=3, frame_tokens=40)


def test_the_capture_is_what_the_model_attends_to(weights: Path) -> None:
    model = load_demo(weights)
    text = caption(random_scene(np.random.default_rng(0)))
    samples = capture(model, text, 3, num_cached_chunks=2, num_steps=2)
    size = model.geometry.chunk_tokens
    assert len(samples) == model.geometry.num_layers
    assert samples[1].k_CHTD.shape == samples[1].commit_q_CHTD.shape == (2, 1, size, 64)
    assert samples[1].q_LHTD.shape == (2, 1, size, 64) and samples[1].layer == 1
    again = capture(model, text, 3, num_cached_chunks=2, num_steps=2)
    assert torch.equal(again[1].v_CHTD, samples[1].v_CHTD)
    longer = capture(model, text, 3, num_cached_chunks=3, num_steps=2)
    torch.testing.assert_close(longer[1].k_CHTD[:2], samples[1].k_CHTD)


def test_families_are_as_their_names_say() -> None:
    def share_of_previous_frame(sample):
        frames = sample.v_CHTD[0].unflatten(1, (3, 40))
        return float((frames[:, 1:] - frames[:, :-1]).square().mean() / frames.var())

    assert share_of_previous_frame(small("static scene")) < 0.1
    assert share_of_previous_frame(small("full rank, no redundancy")) > 1.5
    deviation = small("outlier channels").k_CHTD.flatten(0, 2).square().mean(0).sqrt()
    assert int((deviation > 4 * deviation.median()).sum()) == 4
    heavy, plain = (small(name).v_CHTD for name in ("heavy tails", "fast scene"))
    assert float((heavy.abs().amax() / heavy.std()) / (plain.abs().amax() / plain.std())) > 1.5


def test_videos_of_a_family_share_a_model_but_no_token() -> None:
    first, second = small(seed=0), small(seed=1)
    assert not torch.equal(first.k_CHTD, second.k_CHTD)
    _, _, basis = torch.linalg.svd(first.v_CHTD[:, 0].flatten(0, 1), full_matrices=False)
    outside = second.v_CHTD[:, 0].flatten(0, 1) @ basis[6:].T
    assert float(outside.norm() / second.v_CHTD[:, 0].norm()) < 0.3
