"""`pagedvid generate` with a tiny MAGI-1: embeddings from files or a text encoder, given frames, latents out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.cli.folders import manifest_lines, names
from tests.integrations.tiny_parts import write_encoder, write_tokenizer

TOOLS = Path(__file__).parents[2] / "tools"
FAST = ("--model", "magi-1-4.5b-distill", "--memory", "1MiB", "--frames", 5, "--set", "engine.max_batch_tokens=500")


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.syspath_prepend(str(TOOLS))
    import make_tiny_checkpoint as tiny

    folder = tmp_path / "tiny"
    tiny.write(tiny.MAKERS["magi-1-4.5b-distill"]("magi-1-4.5b-distill", 3), folder)
    save_file({"latents": torch.zeros(4, 3, 4, 6)}, folder / "inputs" / "prefix.safetensors")
    return folder


def lines(weights: Path) -> list[dict]:
    """Two requests whose paths are relative to the prompts file's folder."""
    captions = str((weights / "inputs" / "captions.safetensors").relative_to(weights.parent))
    prefix = str(weights / "inputs" / "prefix.safetensors")
    return [
        {"prompt": "a cat", "id": "a", "inputs": {"embeddings": captions}},
        {"prompt": "a cat goes on", "id": "b", "inputs": {"embeddings": captions, "prefix": prefix}},
    ]


def test_latents_come_out_whole_and_are_resumed(command, prompts, weights, tmp_path):
    out, path = tmp_path / "out", prompts(*lines(weights))
    options = ("generate", "--prompts", path, "--out", out, "--weights", weights, *FAST)
    code, stdout, stderr = command(*options)
    assert code == 0, stderr
    assert names(out) == {"a.safetensors", "a.json", "b.safetensors", "b.json", "manifest.jsonl"}
    for id in "ab":
        latents = load_file(out / f"{id}.safetensors")["latents"]
        assert latents.shape == (4, 5, 4, 6) and latents.dtype == torch.float32
        assert bool(torch.isfinite(latents).all())
        with safe_open(out / f"{id}.safetensors", "pt") as file:
            assert file.metadata() == {"frames_per_second": "6"}
        assert json.loads((out / f"{id}.json").read_text())["cache_peak_bytes"] > 0
    assert [set(line["inputs"]) for line in manifest_lines(out)] == [{"embeddings"}, {"embeddings", "prefix"}]
    before = (out / "a.safetensors").stat().st_mtime_ns
    (out / "b.safetensors").unlink()
    code, stdout, _ = command(*options, "--resume")
    assert code == 0 and "videos  1 done" in stdout
    assert (out / "a.safetensors").stat().st_mtime_ns == before and (out / "b.safetensors").exists()


def test_other_inputs_are_another_video(command, prompts, weights, tmp_path):
    out = tmp_path / "out"
    first = lines(weights)[:1]
    run = ("generate", "--out", out, "--weights", weights, *FAST, "--prompts")
    assert command(*run, prompts(*first))[0] == 0
    first[0]["inputs"]["prefix"] = lines(weights)[1]["inputs"]["prefix"]
    code, _, stderr = command(*run, prompts(*first), "--resume")
    assert code == 2 and "made differently (prefix: None -> " in stderr


def test_the_plan_knows_the_look_back(command, prompts, weights):
    code, out, _ = command(
        "generate", "--prompts", prompts("a cat"), "--plan", "--model", "magi-1-4.5b", "--frames", 360, "--kv", "bf16"
    )
    assert code == 0
    assert "window   the model's own look-back: at most 6 frames stored at once" in out
    pages = 2 * 34 * 8 * 675  # keys and values of 12150 tokens, 18 a page
    assert f"{pages}" in next(line for line in out.splitlines() if line.startswith("bf16"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("caption.safetensors", r'"inputs" is .caption.safetensors.; it must be an object of file names'),
        ({"embeddings": 3}, r'"inputs" is .* it must be an object of file names'),
        (
            {"embeddings": "absent.safetensors"},
            r'the input "embeddings" is .*absent.safetensors: there is no such file',
        ),
    ],
)
def test_inputs_that_are_no_files_are_refused(command, prompts, tmp_path, inputs, message):
    path = prompts({"prompt": "a cat", "inputs": inputs})
    code, _, stderr = command("generate", "--prompts", path, "--out", tmp_path / "out", *FAST)
    import re

    assert code == 2 and re.search(message, " ".join(stderr.split()))


def test_requests_without_embeddings_fail_one_by_one(command, prompts, weights, tmp_path):
    path = prompts(lines(weights)[0], {"prompt": "a dog", "id": "dog"})
    code, _, stderr = command("generate", "--prompts", path, "--out", tmp_path / "out", "--weights", weights, *FAST)
    assert code == 1 and "no embeddings for the prompt 'a dog'" in " ".join(stderr.split())
    assert [(line["id"], line["status"]) for line in manifest_lines(tmp_path / "out")] == [
        ("dog", "failed"),
        ("a", "done"),
    ]


# ---------------------------------------------------------------------- text encoder


def test_a_text_encoder_makes_what_a_caption_file_holds(command, prompts, weights, tmp_path):
    """An encoder's embeddings, and those of a file that transformers itself made: the same video."""
    tokenizer, encoder = write_tokenizer(tmp_path / "t5"), write_encoder(tmp_path / "t5", "t5", 24)
    tokens = tokenizer("a cat walks", max_length=64, padding="max_length", return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    with torch.no_grad():
        rows = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[0]
    save_file({"embeddings": rows, "mask": mask[0]}, tmp_path / "caption.safetensors")
    lines = [
        {"prompt": "a cat walks", "id": "encoded", "seed": 5},
        {"prompt": "-", "id": "file", "seed": 5, "inputs": {"embeddings": str(tmp_path / "caption.safetensors")}},
        {"prompt": "a dog sits", "id": "other", "seed": 5},
    ]
    options = ("--weights", weights, *FAST, "--set", f"model.text_encoder={tmp_path / 't5'}")
    code, _, stderr = command("generate", "--prompts", prompts(*lines), "--out", tmp_path / "out", *options)
    assert code == 0, stderr
    made = {line["id"]: load_file(tmp_path / "out" / f"{line['id']}.safetensors")["latents"] for line in lines}
    assert torch.equal(made["encoded"], made["file"])
    assert (made["encoded"] - made["other"]).abs().max() > 1e-3
    assert manifest_lines(tmp_path / "out")[0]["settings"]["model.text_encoder"] == str(tmp_path / "t5")


def test_special_tokens_are_another_video_and_do_not_disturb_resuming(command, prompts, weights, tmp_path):
    write_tokenizer(tmp_path / "t5"), write_encoder(tmp_path / "t5", "t5", 24)
    draw = np.random.default_rng(0)
    tokens = {name: draw.normal(size=(1, 24)) for name in ("caption_token", "logo_token")}
    np.savez(weights / "special_tokens.npz", **tokens, other_tokens=draw.normal(size=(100, 24)))
    path, videos = prompts({"prompt": "a cat walks", "id": "a"}), {}
    for setting in ("auto", "[duration, hq]", "[hq]", "[]"):
        out = tmp_path / setting
        options = (
            "generate", "--prompts", path, "--out", out, "--weights", weights, *FAST,
            "--set", f"model.text_encoder={tmp_path / 't5'}", "--set", f"model.special_tokens={setting}",
        )  # fmt: skip
        for resume in ((), ("--resume",)):
            code, stdout, stderr = command(*options, *resume)
            assert code == 0, stderr
        assert "0 done" in stdout
        videos[setting] = load_file(out / "a.safetensors")["latents"]
    assert torch.equal(videos["auto"], videos["[duration, hq]"])
    for one, other in (("auto", "[hq]"), ("auto", "[]"), ("[hq]", "[]")):
        assert (videos[one] - videos[other]).abs().max() > 1e-3


def test_a_text_encoder_of_another_model_is_refused(command, prompts, weights, tmp_path):
    write_encoder(tmp_path / "umt5", "umt5", 24)
    options = ("--weights", weights, *FAST, "--set", f"model.text_encoder={tmp_path / 'umt5'}")
    code, _, stderr = command("generate", "--prompts", prompts("a cat"), "--out", tmp_path / "out", *options)
    assert code == 2
    assert "is a umt5 of width 24; this model was trained on the rows of a t5 of width 24" in " ".join(stderr.split())
