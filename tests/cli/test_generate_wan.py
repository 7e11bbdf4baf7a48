"""`pagedvid generate --model self-forcing` end to end at a tiny size: published layouts in, mp4 out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pagedvid.integrations.vae import VideoVae
from pagedvid.output.mp4 import count_frames, read_frames
from tests.cli.folders import manifest_lines, names
from tests.models.wan.base.loras import peft_file, random_pairs
from tests.models.wan.base.published import (
    write_pipeline,
    write_self_forcing,
    write_text_encoder,
    write_transformer,
    write_vae,
)
from tests.models.wan.base.tiny import tiny_transformer

WAN = "WanTransformer3DModel"
FAST = (
    "--model", "self-forcing", "--memory", "1MiB", "--frames", 7, "--kv", "int2",
    "--set", "model.height=48", "--set", "model.width=80", "--set", "generate.threads=1",
)  # fmt: skip
"""A video of 7 latent frames is one of 25 frames; chunks are 3, 3 and 1."""


def test_a_self_forcing_checkpoint_makes_videos(command, prompts, tmp_path):
    """Encoder and VAE are named; two prompts run together."""
    weights = write_self_forcing(tmp_path / "weights", generator_ema=tiny_transformer(WAN))
    write_text_encoder(tmp_path / "text")
    write_vae(tmp_path / "vae")
    parts = ("--set", f"model.text_encoder={tmp_path / 'text'}", "--set", f"model.vae={tmp_path / 'vae'}")
    path, out = prompts("a cat walks", "a dog sits on the roof"), tmp_path / "out"
    code, stdout, stderr = command("generate", "--prompts", path, "--out", out, "--weights", weights, *FAST, *parts)
    assert code == 0, stderr
    assert "videos  2 done" in stdout
    files = sorted(out.glob("*.mp4"))
    assert len(files) == 2 and (out / "sheet.png").exists()
    videos = [np.stack(read_frames(file)).astype(int) for file in files]
    assert [video.shape for video in videos] == 2 * [(25, 48, 80, 3)]  # not enlarged
    assert np.abs(videos[0] - videos[1]).mean() > 1
    details = json.loads(files[0].with_suffix(".json").read_text())
    assert details["frames_per_second"] == 16.0 and details["cache_peak_bytes"] > 0


def test_a_pipeline_of_diffusers_makes_the_same_video_without_naming_its_parts(command, prompts, tmp_path):
    """Its frames are those that the VAE decodes from the latents of a run without a VAE."""
    transformer = write_pipeline(tmp_path / "pipeline", WAN)
    pipeline, checkpoint = tmp_path / "pipeline", write_self_forcing(tmp_path / "pt", generator=transformer)
    path = prompts({"prompt": "a cat walks", "id": "a", "seed": 5}, {"prompt": "a dog", "id": "b", "seed": 6})
    run = ("generate", "--prompts", path, *FAST)
    encoder = ("--set", f"model.text_encoder={pipeline}")
    assert command(*run, "--out", tmp_path / "frames", "--weights", pipeline)[0] == 0
    code, _, stderr = command(*run, "--out", tmp_path / "latents", "--weights", checkpoint, *encoder)
    assert code == 0, stderr
    assert names(tmp_path / "latents") == {"a.safetensors", "a.json", "b.safetensors", "b.json", "manifest.jsonl"}
    for id in "ab":
        latents = load_file(tmp_path / "latents" / f"{id}.safetensors")["latents"].transpose(0, 1)
        assert latents.shape == (7, 4, 6, 10)
        decoded = VideoVae(pipeline / "vae").decode(latents)
        shown = np.stack(read_frames(tmp_path / "frames" / f"{id}.mp4"))
        distance = np.abs(shown.astype(int) - decoded.astype(int)).mean()
        assert distance < 12 < np.abs(shown.astype(int) - decoded[::-1].astype(int)).mean()  # colours are subsampled
    code, _, stderr = command("decode", tmp_path / "latents" / "a.safetensors", "--vae", pipeline / "vae")
    assert code == 0 and count_frames(tmp_path / "latents" / "a.mp4") == 25, stderr


def test_a_video_goes_on_from_an_image_and_from_a_file(command, prompts, tmp_path):
    """7 latent frames are 28 frames then. An image of another size is refused, and without a VAE any image is."""
    write_pipeline(tmp_path / "pipeline", WAN)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    Image.fromarray(pixels[:40]).save(tmp_path / "flat.png")
    lines = [{"prompt": "a cat walks", "id": id, "seed": 5} for id in ("plain", "image", "flat")]
    lines[1]["image"], lines[2]["image"] = "start.png", "flat.png"
    run = ("generate", "--prompts", prompts(*lines), *FAST)
    code, _, stderr = command(*run, "--out", tmp_path / "out", "--weights", tmp_path / "pipeline")
    assert code == 1 and "has 80 x 40 pixels (width x height); allowed are 80 x 48" in " ".join(stderr.split())
    plain, image = (np.stack(read_frames(tmp_path / "out" / f"{id}.mp4")).astype(int) for id in ("plain", "image"))
    assert (len(plain), len(image)) == (25, 28)
    more = prompts({"prompt": "a cat walks", "id": "more", "video": "out/image.mp4"})
    words = ("generate", "--prompts", more, *FAST, "--out", tmp_path / "more", "--weights")
    assert command(*words, tmp_path / "pipeline")[0] == 0
    assert count_frames(tmp_path / "more" / "more.mp4") == 28
    encoder = ("--set", f"model.text_encoder={tmp_path / 'pipeline'}", "--overwrite")
    code, _, stderr = command(*words, tmp_path / "pipeline" / "transformer", *encoder)
    assert code == 1 and "self-forcing has no VAE to encode given frames with" in " ".join(stderr.split())


def test_loras_weights_in_eight_bits_and_in_host_memory(command, prompts, tmp_path):
    """The LoRA and the rounding change the video, a little; where the weights are does not."""
    transformer = write_transformer(tmp_path / "model", WAN)
    save_file(peft_file(random_pairs(transformer)), tmp_path / "style.safetensors")
    save_file({"prompt_embeds": torch.randn(5, 12)}, tmp_path / "cat.safetensors")
    path = prompts({"prompt": "a cat", "id": "a", "inputs": {"embeddings": "cat.safetensors"}})
    run = ("generate", "--prompts", path, "--weights", tmp_path / "model", *FAST)
    lora = ("--lora", f"{tmp_path / 'style.safetensors'}:0.1")
    runs = {"plain": (), "lora": lora, "fp8": (*lora, "--weights-dtype", "fp8")}
    runs["away"] = (*runs["fp8"], "--offload")
    latents = {}
    for name, words in runs.items():
        code, _, stderr = command(*run, "--out", tmp_path / name, *words)
        assert code == 0, stderr
        latents[name] = load_file(tmp_path / name / "a.safetensors")["latents"]
    assert torch.equal(latents["fp8"], latents["away"])
    changes = [(latents[a] - latents[b]).norm() / latents[b].norm() for a, b in (("lora", "plain"), ("fp8", "lora"))]
    assert all(0.001 < float(change) < 1 for change in changes), changes
    again = ("--out", tmp_path / "lora", "--resume", "--lora", f"{tmp_path / 'style.safetensors'}:0.2")
    code, _, stderr = command(*run, *again)
    assert code == 2 and "model.loras: " in " ".join(stderr.split()), stderr  # a folder holds videos of one job


def test_embeddings_may_come_in_place_of_an_encoder(command, prompts, tmp_path):
    write_pipeline(tmp_path / "pipeline", WAN)
    rows = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    save_file({"prompt_embeds": rows}, tmp_path / "cat.safetensors")
    path = prompts({"prompt": "a cat", "id": "a", "inputs": {"embeddings": "cat.safetensors"}}, {"prompt": "a dog"})
    options = ("--out", tmp_path / "out", "--weights", tmp_path / "pipeline" / "transformer", *FAST)
    code, _, stderr = command("generate", "--prompts", path, *options)
    assert code == 1 and "has nothing to encode the prompt 'a dog' with" in " ".join(stderr.split())
    assert [(line["id"], line["status"]) for line in manifest_lines(tmp_path / "out")][-1] == ("a", "done")


def test_with_embeddings_for_all_a_pipeline_needs_no_encoder(command, prompts, tmp_path, monkeypatch):
    import sys

    write_pipeline(tmp_path / "pipeline", WAN)
    monkeypatch.setitem(sys.modules, "transformers", None)
    save_file({"prompt_embeds": torch.randn(1, 5, 12)}, tmp_path / "cat.safetensors")
    path = prompts({"prompt": "a cat", "id": "a", "inputs": {"embeddings": "cat.safetensors"}})
    options = ("--out", tmp_path / "out", "--weights", tmp_path / "pipeline", *FAST)
    code, _, stderr = command("generate", "--prompts", path, *options)
    assert code == 0 and count_frames(tmp_path / "out" / "a.mp4") == 25, stderr


def test_the_plan_needs_no_weights_and_no_libraries(command, prompts, monkeypatch):
    import sys

    for library in ("diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    options = ("--plan", "--model", "self-forcing", "--frames", 21)
    code, out, stderr = command("generate", "--prompts", prompts("a cat"), *options)
    assert code == 0, stderr
    assert "30 layers x 12 KV heads x 128, 1560 tokens/frame" in out
    assert "21 frames = 7 chunks" in out
    assert "0 sink + 6 recent chunks" in out  # the model's own window, not the configured one


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.height=52", "height is 52; self-forcing makes frames of multiples of 16 pixels, such as 48 or 64"),
        ("model.width=88", "makes frames of multiples of 16 pixels, such as 80 or 96"),
        ("model.width=8", "model.width is 8; allowed is null, or a whole number from 16 to 16384"),
        ("model.vae=nowhere", "model.vae is nowhere, which does not exist; give a file or folder (nothing is down"),
        ("model.weights=gdhe17/Self-Forcing", "model.weights is gdhe17/Self-Forcing, which does not exist"),
        ("model.text_encoder=vae", "holds no text encoder"),
        ("model.loras=[style.safetensors:0.5]", "model.loras names style.safetensors, which does not exist; give PATH"),
        ("model.loras=[vae]", "holds keys that are not known of LoRAs: "),
        ("engine.denoise_steps=9", "was distilled to 4 steps"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(setting, message, command, prompts, tmp_path, monkeypatch, capsys):
    write_pipeline(tmp_path, WAN)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    options = ("--out", tmp_path / "out", "--weights", tmp_path, *FAST, "--set", setting)
    code, _, stderr = command("generate", "--prompts", prompts("a cat"), *options)
    text = " ".join(stderr.split())
    assert message in text
    if "denoise" not in setting:
        assert code == 2 and len(stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("what", ["weights", "library", "version"])
def test_what_is_missing_is_said_in_one_line(what, command, prompts, tmp_path, monkeypatch):
    import sys

    import diffusers

    write_pipeline(tmp_path, WAN)
    if what == "weights":
        file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
        save_file({"blocks.0.attn1.to_q.weight": torch.zeros(32, 32)}, file)
    elif what == "library":
        monkeypatch.setitem(sys.modules, "diffusers", None)
    else:
        monkeypatch.setattr(diffusers, "__version__", "0.31.0")
    options = ("--out", tmp_path / "out", "--weights", tmp_path, *FAST)
    code, _, stderr = command("generate", "--prompts", prompts("a cat"), *options)
    expected = {
        "weights": "does not fit the model: missing keys",
        "library": "needs the library diffusers",
        "version": "needs diffusers 0.36 or newer and below 1.0; installed is 0.31.0",
    }[what]
    assert code == 2 and expected in stderr and "pagedvid: error" in stderr.strip().splitlines()[-1]


def test_demo_and_magi_have_one_frame_size(command, prompts, tmp_path):
    options = ("--out", tmp_path / "out", "--set", "model.height=64")
    code, _, stderr = command("generate", "--prompts", prompts("a red circle"), *options)
    assert code == 2 and "demo makes frames of one size; remove model.height\n" in stderr
