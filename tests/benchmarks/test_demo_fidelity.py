"""The fidelity benchmark on an untrained model: its loop is the engine's, and its file holds what was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pagedvid.errors import ConfigError
from pagedvid.models.demo.model import DemoModel


def test_prompts_are_fixed_by_the_seed() -> None:
    from demo_fidelity import draw_requests

    assert draw_requests(3, 0) == draw_requests(5, 0)[:3]
    assert draw_requests(3, 0) != draw_requests(3, 1)


def test_loop_and_engine_make_the_same_frames(weights: Path) -> None:
    from demo_fidelity import Lab, draw_requests, frames_of

    lab = Lab(DemoModel.load(weights), draw_requests(2, 0), num_frames=24, num_denoise_steps=2)
    case = ("int2", "measured")
    made = lab.forced(case).generate()
    frames = frames_of(made)
    difference = np.abs(frames.astype(int) - lab.engine_frames(case).astype(int))
    assert frames.std() > 1 and difference.max() <= 1 and difference.mean() < 0.01
    forced = lab.forced(case).generate(history=made.latents)
    torch.testing.assert_close(forced.latents, made.latents)
    other = lab.forced(case).generate(history=[-latents for latents in made.latents])
    assert (other.latents[1] - made.latents[1]).abs().max() > 1e-3  # the given history is the one that is read


def test_runs_and_writes(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from demo_fidelity import main

    tiny = ["--prompts", "2", "--steps", "1", "--extra-codecs", "int8", "--weights", str(weights)]
    main([*tiny, "--out", str(tmp_path / "x.json")])
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    rows = {(row["codec"], row["correction"]): row for row in results["frames"]}
    assert list(rows) == [("int2", "off"), ("int2", "formula"), ("int2", "measured"), ("int8", "measured")]
    assert all(len(row["psnr"]) == len(row["ssim"]) == len(row["forced_psnr"]) == 2 for row in rows.values())
    assert np.mean(rows["int8", "measured"]["psnr"]) >= np.mean(rows["int2", "measured"]["psnr"])
    masses = np.array([results["cached_mass"][name] for name in ("unquantized", "off", "formula", "measured")])
    assert masses.shape == (4, 2, 2) and (masses > 0).all() and (masses < 1).all()
    printed = capsys.readouterr().out
    assert "int2 measured" in printed and "distance" in printed


def test_too_short_videos_are_refused(weights: Path) -> None:
    from demo_fidelity import main

    with pytest.raises(ConfigError, match="3 chunks"):
        main(["--frames", "16", "--weights", str(weights)])
