"""`pagedvid generate` with tiny HY-WorldPlay checkpoints (their inputs from files), and `pagedvid decode`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pagedvid.cli import decode
from pagedvid.errors import ConfigError
from pagedvid.output.latents import LatentWriter, read_latents
from pagedvid.output.mp4 import VideoWriter, read_frames
from tests.cli.folders import names
from tests.integrations.tiny_parts import VAES, by_hand, write_encoder, write_tokenizer

TOOLS = Path(__file__).parents[2] / "tools"
SHAPES = {"hy-worldplay-8b": (4, 8, 3, 4), "hy-worldplay-5b": (4, 8, 6, 8)}
FAST = ("--memory", "1MiB", "--frames", 8)
only_8b = pytest.mark.parametrize("tiny", ["hy-worldplay-8b"], indirect=True)
only_5b = pytest.mark.parametrize("tiny", ["hy-worldplay-5b"], indirect=True)


@pytest.fixture(params=SHAPES)
def tiny(request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, Path]:
    """Name and folder of a tiny checkpoint whose trajectory has 8 frames."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import make_tiny_checkpoint
    import tiny_worldplay

    name, folder = request.param, tmp_path / "tiny"
    make_tiny_checkpoint.write(make_tiny_checkpoint.MAKERS[name](name, 3), folder)
    (folder / "inputs" / "trajectory.json").write_text(json.dumps(tiny_worldplay.trajectory(8)))
    return name, folder


def line(folder: Path, **changed: str) -> dict:
    files = {"trajectory": "trajectory.json", "embeddings": "embeddings.safetensors", **changed}
    return {"prompt": "a walk", "id": "walk", "inputs": {name: str(folder / "inputs" / x) for name, x in files.items()}}


def generate(command, prompts, tiny, out, *more):
    name, folder = tiny
    options = ("--model", name, "--weights", folder, "--out", out, *FAST, *more)
    return command("generate", "--prompts", prompts(line(folder)), *options)


def test_latents_come_out_whole(command, prompts, tiny, tmp_path):
    code, _, stderr = generate(command, prompts, tiny, tmp_path / "out")
    assert code == 0, stderr
    assert names(tmp_path / "out") == {"walk.safetensors", "walk.json", "manifest.jsonl"}
    latents = load_file(tmp_path / "out" / "walk.safetensors")["latents"]
    assert latents.shape == SHAPES[tiny[0]] and bool(torch.isfinite(latents).all())


def test_a_trajectory_of_another_length_is_refused(command, prompts, tiny, tmp_path):
    code, _, stderr = generate(command, prompts, tiny, tmp_path / "out", "--frames", 12)
    assert code != 0
    assert "the trajectory has 8 frames, the video 12 latent frames" in stderr


def test_a_vae_is_for_decode(command, prompts, tiny, tmp_path):
    code, _, stderr = generate(command, prompts, tiny, tmp_path / "out", "--set", f"model.vae={tmp_path}")
    assert code == 2 and "pagedvid decode" in stderr


@pytest.mark.parametrize(("name", "pages"), [("hy-worldplay-8b", 421632), ("hy-worldplay-5b", 158400)])
def test_plan_knows_the_published_sizes(command, prompts, name, pages):
    """20 x 1560 and 16 x 880 tokens of memory, once: 2 x 244 pages for 54 x 16 heads, 2 x 110 for 30 x 24."""
    code, stdout, _ = command("generate", "--prompts", prompts("a walk"), "--model", name, "--frames", 60, "--plan")
    assert code == 0
    assert next(row for row in stdout.splitlines() if row.startswith("int2")).split()[2] == str(pages)


# ---------------------------------------------------------------------- decode


class FakeVae:
    """Grey frames, four for every latent frame after the first."""

    frames_per_latent = 4

    def decode(self, latents_FCRS):
        return np.full((1 + 4 * (len(latents_FCRS) - 1), 16, 32, 3), 90, dtype=np.uint8)


def write_latents(path: Path, num_frames: int = 3) -> None:
    writer = LatentWriter(path, 6.0)
    writer.add(np.zeros((num_frames, 4, 2, 4), dtype=np.float32))
    writer.finish()
    writer.publish()


def test_a_file_becomes_a_video_next_to_it(tmp_path):
    write_latents(tmp_path / "walk.safetensors")
    path, num_frames = decode.decode_file(FakeVae(), tmp_path / "walk.safetensors")
    assert path == tmp_path / "walk.mp4" and num_frames == 9
    frames = read_frames(path)
    assert len(frames) == 9 and frames[0].shape == (16, 32, 3)
    assert names(tmp_path) == {"walk.safetensors", "walk.mp4"}


def test_latents_are_read_as_they_were_written(tmp_path):
    writer = LatentWriter(tmp_path / "x.safetensors", 6.0)
    parts = [np.random.default_rng(i).normal(size=(4, 3, 2, 5)).astype(np.float32) for i in range(2)]
    for part in parts:
        writer.add(part)
    writer.finish()
    writer.publish()
    latents, rate = read_latents(tmp_path / "x.safetensors")
    assert rate == 6.0 and np.array_equal(latents, np.concatenate(parts))


def test_other_files_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="holds no latents of pagedvid"):
        read_latents(tmp_path / "x.safetensors")


def test_folders_and_files_can_be_given(tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("b", "a"):
        write_latents(tmp_path / "out" / f"{name}.safetensors")
    write_latents(tmp_path / "c.safetensors")
    files = decode.latents_files([tmp_path / "out", tmp_path / "c.safetensors"])
    assert [file.name for file in files] == ["a.safetensors", "b.safetensors", "c.safetensors"]


@pytest.mark.parametrize(
    ("given", "message"), [("nowhere.safetensors", "is not a file"), ("empty", "has no .safetensors")]
)
def test_nothing_to_decode_is_said_before_the_vae_is_loaded(command, tmp_path, given, message):
    (tmp_path / "empty").mkdir()
    code, _, stderr = command("decode", tmp_path / given, "--vae", tmp_path)
    assert code == 2 and message in stderr


def test_a_folder_that_is_no_vae_is_refused(command, tmp_path):
    write_latents(tmp_path / "x.safetensors")
    code, _, stderr = command("decode", tmp_path / "x.safetensors", "--vae", tmp_path)
    assert code == 2 and "is not a VAE" in stderr


@pytest.mark.parametrize(
    ("tiny", "vae_name"), [("hy-worldplay-8b", "hunyuan"), ("hy-worldplay-5b", "wan22")], indirect=["tiny"]
)
def test_the_whole_way_to_a_video(vae_name, command, prompts, tiny, tmp_path):
    """The decoded latents are the video of the frames that diffusers decodes from them."""
    generate(command, prompts, tiny, tmp_path / "out")
    vae = VAES[vae_name]()
    vae.save_pretrained(tmp_path / "vae")
    code, stdout, stderr = command("decode", tmp_path / "out", "--vae", tmp_path / "vae")
    assert code == 0 and "walk.mp4  29 frames" in stdout, stderr
    latents_CFRS = load_file(tmp_path / "out" / "walk.safetensors")["latents"]
    expected = by_hand(vae, latents_CFRS.transpose(0, 1))
    pixels = 16 * latents_CFRS.shape[2], 16 * latents_CFRS.shape[3]
    assert expected.shape == (29, *pixels, 3) and expected.std() > 5
    writer = VideoWriter(tmp_path / "expected.mp4", 24.0, scale=1)
    writer.add(expected)
    writer.finish()
    writer.publish()
    assert np.array_equal(read_frames(tmp_path / "out" / "walk.mp4"), read_frames(writer.path))


# ---------------------------------------------------------------------- text encoder


def write_pipeline(folder: Path, kind: str = "umt5") -> tuple[Any, Any]:
    """Tokenizer and encoder of the tiny WAN-5B, in folders as a pipeline of diffusers has them."""
    return write_tokenizer(folder / "tokenizer"), write_encoder(folder / "text_encoder", kind, 12)


@only_5b
def test_a_text_encoder_makes_the_prompt_s_embeddings(command, prompts, tiny, tmp_path):
    """The same video as with embeddings from the method of diffusers' own pipeline."""
    from diffusers import WanPipeline

    tokenizer, encoder = write_pipeline(tmp_path / "wan")
    parts = {"tokenizer": tokenizer, "text_encoder": encoder, "transformer": None, "vae": None, "scheduler": None}
    prompt = "a cat &amp;amp; a dog   walks\thome"
    rows = WanPipeline(**parts)._get_t5_prompt_embeds(prompt, max_sequence_length=512).detach()
    assert rows.shape == (1, 512, 12) and not rows[0, 9:].any() and rows[0, :8].all()
    files = tiny[1] / "inputs"
    image = load_file(files / "embeddings.safetensors")["image_latent"]
    save_file({"image_latent": image}, files / "image.safetensors")
    save_file({"image_latent": image, "prompt_embeds": rows}, files / "both.safetensors")
    lines = [
        {**line(tiny[1], embeddings=f"{file}.safetensors"), "prompt": said, "id": id, "seed": 3}
        for id, file, said in (("encoded", "image", prompt), ("file", "both", "-"), ("other", "image", "the roof"))
    ]
    options = ("--weights", tiny[1], "--model", tiny[0], *FAST, "--set", f"model.text_encoder={tmp_path / 'wan'}")
    code, _, stderr = command("generate", "--prompts", prompts(*lines), "--out", tmp_path / "out", *options)
    assert code == 0, stderr
    made = {one["id"]: load_file(tmp_path / "out" / f"{one['id']}.safetensors")["latents"] for one in lines}
    torch.testing.assert_close(made["encoded"], made["file"], atol=1e-5, rtol=0)
    assert (made["encoded"] - made["other"]).abs().max() > 1e-3


@only_5b
def test_without_a_text_encoder_the_embeddings_must_have_the_prompt(command, prompts, tiny, tmp_path):
    file = tiny[1] / "inputs" / "embeddings.safetensors"
    save_file({"image_latent": load_file(file)["image_latent"]}, file)
    code, _, stderr = generate(command, prompts, tiny, tmp_path / "out")
    assert code != 0
    message = "the embeddings lack prompt_embeds; they have image_latent. Encode the prompt, or set model.text_encoder"
    assert message in " ".join(stderr.split())


@only_5b
def test_another_text_encoder_is_refused(command, prompts, tiny, tmp_path):
    write_pipeline(tmp_path / "t5", "t5")
    code, _, stderr = generate(command, prompts, tiny, tmp_path / "out", "--set", f"model.text_encoder={tmp_path}/t5")
    assert code == 2 and "is a t5 of width 12; this model was trained on the rows of a umt5" in " ".join(stderr.split())


@only_8b
def test_the_8b_takes_no_text_encoder(command, prompts, tiny, tmp_path):
    code, _, stderr = generate(command, prompts, tiny, tmp_path / "out", "--set", f"model.text_encoder={tmp_path}")
    assert code == 2 and "three encoders (Qwen2.5-VL, ByT5, SigLIP) that are not run here" in " ".join(stderr.split())
