"""The command line with the real engine, cache and demo model: few frames, few steps."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest

from pagedvid.output.mp4 import read_frames
from tests.cli.folders import assert_whole_videos, manifest_lines

FAST = ("--frames", 20, "--set", "engine.denoise_steps=2", "--set", "generate.threads=1", "--memory", "16MiB")
LINES = (
    "a large red circle moving left on a black background",
    "a small white cross staying still on a navy background",
)


pytestmark = pytest.mark.usefixtures("restore_threads")


def test_two_prompts_to_two_videos(command, prompts, tmp_path):
    out = tmp_path / "out"
    code, stdout, stderr = command("generate", "--prompts", prompts(*LINES), "--out", out, *FAST)
    assert code == 0, stderr
    ids = assert_whole_videos(out, 20)
    assert len(ids) == 2
    assert "videos  2 done\nframes  40 in" in stdout
    assert "attention backend: torch" in stderr
    for id in ids:
        sidecar = json.loads((out / f"{id}.json").read_text())
        # three chunks of 8 frames, two of them committed; all metadata and padding counted
        assert 0 < sidecar["cache_peak_bytes"] <= 0.155 * sidecar["cache_bf16_bytes"]
        assert sidecar["frames_per_second"] == 12
        assert read_frames(out / f"{id}.mp4")[0].shape == (256, 256, 3)


def test_a_video_does_not_depend_on_what_runs_next_to_it(command, prompts, tmp_path):
    path = prompts({"prompt": LINES[0], "id": "a", "seed": 3}, {"prompt": LINES[1], "id": "b", "seed": 4})
    alone, together = tmp_path / "alone", tmp_path / "together"
    command("generate", "--prompts", path, "--out", together, *FAST)
    command("generate", "--prompts", path, "--out", alone, *FAST, "--concurrent", 1)
    for id in ("a", "b"):
        frames = [np.array(read_frames(folder / f"{id}.mp4")).astype(int) for folder in (alone, together)]
        assert np.abs(frames[0] - frames[1]).mean() < 1.0


def test_keys_and_values_and_layers_apart(command, prompts, tmp_path):
    out = tmp_path / "out"
    layers = "cache.layer_codecs={0: int8/int4, 2-3: bf16}"
    code, stdout, stderr = command(
        "generate", "--prompts", prompts(LINES[0]), "--out", out, *FAST, "--kv", "int4/int2", "--set", layers
    )
    assert code == 0, stderr
    (id,) = assert_whole_videos(out, 20)
    assert "codec   int4/int2, correction measured" in stdout
    sidecar = json.loads((out / f"{id}.json").read_text())
    assert sidecar["settings"]["cache.layer_codecs"] == {"0": "int8/int4", "2-3": "bf16"}
    # Chunks of 128 tokens. Six layers: int8 (4 pages) and int4 (2), two in bf16 (8 + 8), three in int4 and int2 (1).
    pages, factors = 3 * (6 + 2 * 16 + 3 * 3), 6 * 3
    assert sidecar["cache_peak_bytes"] == 2 * (36 * 64 * pages + 4 * factors)
    assert sidecar["cache_bf16_bytes"] == 2 * 128 * (2 * 2 * 6 * 3 * 64)


@pytest.fixture
def weights_without_tables(tmp_path):
    shipped = files("pagedvid.models.demo") / "weights"
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((shipped / name).read_bytes())
    return folder


def test_without_tables_the_codec_is_int2(command, prompts, tmp_path, weights_without_tables):
    out = tmp_path / "out"
    words = ("generate", "--prompts", prompts(LINES[0]), "--out", out, *FAST, "--weights", weights_without_tables)
    assert command(*words, "--plan")[1].count("\ncodecs   int2\n") == 1
    code, _, stderr = command(*words, "--kv", "klt2")
    assert code == 2
    assert stderr.splitlines()[-1].startswith(
        "pagedvid: error: klt2 needs tables of the model; make them with `pagedvid"
    )
    assert not out.exists() or not list(out.iterdir())


def test_known_and_unknown_words(command, prompts, tmp_path):
    path = prompts("a sparkling red circle on a black background", "quantum entanglement")
    code, _, stderr = command("generate", "--prompts", path, "--out", tmp_path / "out", *FAST)
    assert code == 1
    assert "warning" in stderr
    assert "'sparkling'" in stderr
    assert "failed  001-quantum-entanglement  no word of the prompt 'quantum entanglement' is known" in stderr
    statuses = {line["id"]: line["status"] for line in manifest_lines(tmp_path / "out")}
    assert statuses == {
        "000-a-sparkling-red-circle-on-a-black-background": "done",
        "001-quantum-entanglement": "failed",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "1KiB"], "error: "),
        (["--memory", "64KiB"], "pages"),
        (["--set", "cache.recent_chunks=50"], "lower one of them"),
        (["--set", "attention.backend=magic"], "unknown attention backend 'magic'"),
        (["--model", "sora"], "unknown model 'sora'"),
        (["--weights", "nowhere"], "nowhere"),
        (["--set", "model.device=cuda:9"], "cuda"),
        (["--kv", "klt2", "--set", "cache.correction=formula"], 'klt2 keys have no step size for correction "formula"'),
        (["--set", "cache.layer_codecs={6: int8}"], "codecs are given for layer 6; the layers are 0 to 5"),
        (["--kv", "token2-g128"], "token2-g128 needs a head_dim that is a multiple of 128; it is 64"),
    ],
)
def test_what_cannot_work_here_is_one_line_and_leaves_no_folder(command, prompts, tmp_path, options, message):
    out = tmp_path / "out"
    code, _, stderr = command("generate", "--prompts", prompts(LINES[0]), "--out", out, *FAST, *options)
    last = stderr.splitlines()[-1]
    assert (code, last.startswith("pagedvid: error: ")) == (2, True), stderr
    assert message in last
    assert "Traceback" not in stderr
    assert not out.exists() or not list(out.iterdir())
