"""`pagedvid generate --model longlive-2-5b` end to end at a tiny size: a pipeline with Wan 2.2's VAE in, mp4 out."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from pagedvid.integrations.vae import VideoVae
from pagedvid.output.mp4 import read_frames
from tests.integrations.tiny_parts import WAN22_5B
from tests.models.wan.base.published import write_pipeline, write_vae

FAST = (
    "--model", "longlive-2-5b", "--memory", "4MiB", "--frames", 10, "--kv", "int2",
    "--set", "model.height=64", "--set", "model.width=96", "--set", "generate.threads=1",
)  # fmt: skip
"""A video of 10 latent frames is one of 37 frames; chunks are 8 and 2."""


def pipeline(folder):
    write_pipeline(folder, "WanTransformer3DModel", in_channels=48, out_channels=48)
    write_vae(folder / "vae", **WAN22_5B)
    return folder


def blocks(frames: np.ndarray) -> np.ndarray:
    """Mean colours of 4 x 4 pixels: of the finer patterns of random weights, mp4 keeps no colours."""
    num_frames, height, width, _ = frames.shape
    return frames.reshape(num_frames, height // 4, 4, width // 4, 4, 3).mean((2, 4))


def test_frames_stream_out_of_the_vae_of_wan_22(command, prompts, tmp_path):
    """Two prompts run together; their frames are those that the VAE decodes from the latents of a run without it."""
    weights = pipeline(tmp_path / "pipeline")
    path = prompts({"prompt": "a cat walks", "id": "a", "seed": 5}, {"prompt": "a dog", "id": "b", "seed": 6})
    run = ("generate", "--prompts", path, *FAST)
    code, _, stderr = command(*run, "--out", tmp_path / "frames", "--weights", weights)
    assert code == 0, stderr
    encoder = ("--set", f"model.text_encoder={weights}")
    code, _, stderr = command(*run, "--out", tmp_path / "latents", "--weights", weights / "transformer", *encoder)
    assert code == 0, stderr
    for id in "ab":
        latents = load_file(tmp_path / "latents" / f"{id}.safetensors")["latents"].transpose(0, 1)
        assert latents.shape == (10, 48, 4, 6)
        shown = np.stack(read_frames(tmp_path / "frames" / f"{id}.mp4"))
        assert shown.shape == (37, 64, 96, 3)
        decoded = VideoVae(weights / "vae").decode(latents)
        distance, to_reversed = (np.abs(blocks(shown) - blocks(other)).mean() for other in (decoded, decoded[::-1]))
        assert distance < 4 < to_reversed
    assert json.loads((tmp_path / "frames" / "a.json").read_text())["frames_per_second"] == 24.0


def test_a_video_goes_on_from_an_image(command, prompts, tmp_path):
    """10 latent frames are 40 frames then. An image of another size is refused."""
    weights = pipeline(tmp_path / "pipeline")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    Image.fromarray(pixels[:48]).save(tmp_path / "flat.png")
    lines = [{"prompt": "a cat walks", "id": id, "image": f"{id}.png"} for id in ("start", "flat")]
    options = ("--prompts", prompts(*lines), *FAST, "--out", tmp_path / "out", "--weights", weights)
    code, _, stderr = command("generate", *options)
    assert code == 1 and "has 96 x 48 pixels (width x height); allowed are 96 x 64" in " ".join(stderr.split())
    assert np.stack(read_frames(tmp_path / "out" / "start.mp4")).shape == (40, 64, 96, 3)


def test_the_plan_is_that_of_the_published_model(command, prompts):
    options = ("--plan", "--model", "longlive-2-5b", "--frames", 32)
    code, out, stderr = command("generate", "--prompts", prompts("a cat"), *options)
    assert code == 0, stderr
    assert "30 layers x 24 KV heads x 128, 880 tokens/frame" in out
    assert "32 frames = 4 chunks" in out and "1 sink + 2 recent chunks" in out


def test_a_size_of_720_lines_is_answered_with_those_that_are_allowed(command, prompts, tmp_path):
    options = ("--prompts", prompts("a cat"), "--out", tmp_path / "out", *FAST, "--set", "model.height=720")
    code, _, stderr = command("generate", *options)
    assert code == 2
    assert "longlive-2-5b makes frames of multiples of 32 pixels, such as 704 or 736" in " ".join(stderr.split())
