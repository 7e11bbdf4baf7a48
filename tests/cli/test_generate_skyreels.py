"""`pagedvid generate --model skyreels-v2-1.3b` end to end at a tiny size: a pipeline of diffusers in, mp4 out."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from pagedvid.output.mp4 import read_frames
from tests.models.wan.base.published import write_pipeline

FAST = (
    "--model", "skyreels-v2-1.3b", "--memory", "4MiB", "--frames", 11, "--set", "engine.denoise_steps=2",
    "--set", "model.height=48", "--set", "model.width=80", "--set", "generate.threads=1",
)  # fmt: skip
"""A video of 11 latent frames is one of 41 frames; chunks are 5, 5 and 1."""


def test_two_prompts_become_two_videos_that_do_not_depend_on_each_other(command, prompts, tmp_path):
    write_pipeline(tmp_path / "pipeline", "SkyReelsV2Transformer3DModel")
    requests = [{"prompt": "a cat walks", "id": "a", "seed": 1}, {"prompt": "a dog", "id": "b", "seed": 2}]
    run = ("generate", "--weights", tmp_path / "pipeline", *FAST, "--kv", "fp32")
    code, stdout, stderr = command(*run, "--prompts", prompts(*requests), "--out", tmp_path / "both")
    assert code == 0, stderr
    assert "videos  2 done" in stdout
    videos = {id: np.stack(read_frames(tmp_path / "both" / f"{id}.mp4")).astype(int) for id in "ab"}
    assert [video.shape for video in videos.values()] == 2 * [(41, 48, 80, 3)]
    apart = np.abs(videos["a"] - videos["b"]).mean()
    assert json.loads((tmp_path / "both" / "a.json").read_text())["frames_per_second"] == 24.0
    assert command(*run, "--prompts", prompts(requests[1]), "--out", tmp_path / "alone")[0] == 0
    alone = np.stack(read_frames(tmp_path / "alone" / "b.mp4")).astype(int)
    assert np.abs(alone - videos["b"]).mean() < 0.02 * apart  # what rounding and the video's encoder make of it


def test_int2_makes_other_frames_of_the_later_chunks_only(command, prompts, tmp_path):
    """The first 17 frames are those of the first chunk, which reads no history."""
    write_pipeline(tmp_path / "pipeline", "SkyReelsV2Transformer3DModel")
    path = prompts({"prompt": "a cat walks", "id": "a", "seed": 1})
    for codec in ("fp32", "int2"):
        options = ("--weights", tmp_path / "pipeline", *FAST, "--kv", codec, "--out", tmp_path / codec)
        code, _, stderr = command("generate", "--prompts", path, *options)
        assert code == 0, stderr
    exact, rounded = (np.stack(read_frames(tmp_path / codec / "a.mp4")).astype(int) for codec in ("fp32", "int2"))
    distance = np.abs(exact - rounded).mean((1, 2, 3))
    assert distance[:17].max() < distance[17:].mean() / 10
    sizes = {
        codec: json.loads((tmp_path / codec / "a.json").read_text())["cache_peak_bytes"] for codec in ("fp32", "int2")
    }
    assert sizes["int2"] < sizes["fp32"] / 8


def test_a_video_goes_on_from_an_image(command, prompts, tmp_path):
    """11 latent frames are 44 frames then."""
    write_pipeline(tmp_path / "pipeline", "SkyReelsV2Transformer3DModel")
    Image.new("RGB", (80, 48), (200, 30, 60)).save(tmp_path / "start.png")
    path = prompts({"prompt": "a cat walks", "id": "a", "image": "start.png"})
    options = ("--weights", tmp_path / "pipeline", *FAST, "--out", tmp_path / "out")
    code, _, stderr = command("generate", "--prompts", path, *options)
    assert code == 0, stderr
    assert np.stack(read_frames(tmp_path / "out" / "a.mp4")).shape == (44, 48, 80, 3)


def test_blocks_in_flight(command, prompts, tmp_path):
    """A video that the window holds, and one that is too long for as many blocks in flight."""
    write_pipeline(tmp_path / "pipeline", "SkyReelsV2Transformer3DModel")
    path = prompts({"prompt": "a cat walks", "id": "a", "seed": 1})
    videos = {}
    for ar_step in (0, 1):
        options = ("--weights", tmp_path / "pipeline", *FAST, "--kv", "fp32", "--out", tmp_path / str(ar_step))
        code, _, stderr = command("generate", "--prompts", path, *options, "--set", f"model.ar_step={ar_step}")
        assert code == 0, stderr
        videos[ar_step] = np.stack(read_frames(tmp_path / str(ar_step) / "a.mp4")).astype(int)
    distance = np.abs(videos[0] - videos[1]).mean((1, 2, 3))
    assert len(distance) == 41 and distance[:17].max() < distance[17:].mean() / 10
    longer = ("--model", "skyreels-v2-1.3b", "--plan", "--frames", 30, "--set", "model.ar_step=7")
    code, _, stderr = command("generate", "--prompts", path, *longer)
    assert code == 2 and "ar_step is 7" in stderr and "Set it to 8 or more" in stderr


def test_the_plan_counts_both_branches(command, prompts):
    options = (
        "--plan",
        "--model",
        "skyreels-v2-14b",
        "--frames",
        25,
        "--set",
        "model.height=720",
        "--set",
        "model.width=1280",
    )
    code, out, stderr = command("generate", "--prompts", prompts("a cat"), *options)
    assert code == 0, stderr
    assert "40 layers x 40 KV heads x 128, 3600 tokens/frame x 2 branches" in out
