"""`pagedvid calibrate`, and the tables that come with the demo model."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
import torch

from pagedvid.calibration.observe import ObservingCache
from pagedvid.calibration.statistics import LayerStatistics, Observation
from pagedvid.cli.measuring import DEMO_PROMPTS, measured_requests, observing
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.tables_file import Calibration, load_calibration
from pagedvid.config.sections import Config
from pagedvid.engine.requests import VideoRequest
from pagedvid.models.build import build_engine, resolve
from pagedvid.models.demo.weights import SHIPPED_WEIGHTS
from pagedvid.models.registry import model_tables

FAST = ("--frames", 16, "--set", "engine.denoise_steps=2", "--set", "generate.threads=1", "--memory", "16MiB")
LINES = (
    "a large red circle moving left on a black background",
    "a small white cross staying still on a navy background",
)


pytestmark = pytest.mark.usefixtures("restore_threads")


def test_prompts_become_tables_for_every_layer(command, prompts, tmp_path):
    out = tmp_path / "tables.safetensors"
    code, stdout, stderr = command("calibrate", "--prompts", prompts(*LINES), "--out", out, *FAST)
    assert code == 0, stderr
    made = load_calibration(out)
    assert "2 videos, 4 chunks" in stdout and made.calibrated_on == "2 videos, 4 chunks"
    facts = (made.model, made.num_layers, made.num_kv_heads, made.head_dim, made.tokens_per_frame)
    assert facts == ("demo", 6, 3, 64, 16) and made.frames_per_block == 8
    again, _, _ = command("calibrate", "--prompts", prompts(*LINES), "--out", out, *FAST, "--overwrite")
    assert again == 0
    same = load_calibration(out)
    assert all(torch.equal(made.tensors[name], same.tensors[name]) for name in made.tensors)


def test_given_frames_are_refused(command, prompts, tmp_path):
    (tmp_path / "a.png").write_bytes(b"not read")
    path = prompts({"prompt": LINES[0]}, {"prompt": LINES[1], "image": "a.png"})
    code, _, stderr = command("calibrate", "--prompts", path, "--out", tmp_path / "tables.safetensors", *FAST)
    assert code == 2 and 'leave "image" and "video" out' in stderr
    assert not (tmp_path / "tables.safetensors").exists()


def test_a_video_that_fails_is_left_out(command, prompts, tmp_path):
    out = tmp_path / "tables.safetensors"
    code, stdout, stderr = command(
        "calibrate", "--prompts", prompts(LINES[0], "a sonnet", LINES[1]), "--out", out, *FAST
    )
    assert code == 1 and "failed  001-a-sonnet  " in stderr
    assert load_calibration(out).calibrated_on == "2 videos, 4 chunks" and "2 videos" in stdout


def test_tables_that_do_not_fit_on_the_disk(command, prompts, tmp_path, monkeypatch):
    """The input was not bad, although the videos were made for nothing: exit code 1."""

    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    out = tmp_path / "tables.safetensors"
    code, _, stderr = command("calibrate", "--prompts", prompts(*LINES), "--out", out, *FAST)
    assert code == 1 and "cannot be written" in stderr and "No space left" in stderr
    assert not list(tmp_path.glob("*.safetensors*")) and not list(tmp_path.glob(".*.tmp"))


def test_tables_serve_the_cache(command, prompts, tmp_path):
    out = tmp_path / "tables.safetensors"
    assert command("calibrate", "--prompts", prompts(*LINES), "--out", out, *FAST)[0] == 0
    videos = ("generate", "--prompts", prompts(LINES[0]), "--out", tmp_path / "videos", *FAST)
    code, _, stderr = command(*videos, "--kv", "klt2", "--set", f"cache.tables={out}")
    assert code == 0, stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "magi-1-4.5b"), "calibrate needs --prompts FILE for magi-1-4.5b"),
        (("--prompts", "none.txt"), "there is no such file"),
    ],
)
def test_prompts_that_are_missing_are_asked_for(command, tmp_path, words, said):
    code, _, stderr = command("calibrate", "--out", tmp_path / "tables.safetensors", *words, *FAST)
    assert code == 2 and said in stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_replaced_unasked(command, prompts, tmp_path):
    out = tmp_path / "tables.safetensors"
    out.write_text("precious")
    code, _, stderr = command("calibrate", "--prompts", prompts(LINES[0]), "--out", out, *FAST)
    assert code == 2 and "exists already" in stderr and out.read_text() == "precious"


def test_a_folder_that_does_not_exist_is_said_before_anything_runs(command, prompts, tmp_path):
    out = tmp_path / "nowhere" / "tables.safetensors"
    code, _, stderr = command("calibrate", "--prompts", prompts(LINES[0]), "--out", out, *FAST)
    assert code == 2 and "is not a folder" in stderr


def test_videos_of_one_chunk_are_too_short(command, prompts, tmp_path):
    out = tmp_path / "tables.safetensors"
    code, _, stderr = command("calibrate", "--prompts", prompts(LINES[0]), "--out", out, *FAST, "--frames", 8)
    assert code == 2 and "for more than one chunk" in stderr and not out.exists()


# ---------------------------------------------------------------------- the demo model's own


def test_the_demo_model_brings_prompts_whose_seeds_no_benchmark_uses():
    requests = measured_requests(Config(), None, "calibrate")
    assert len({request.id for request in requests}) == len({request.seed for request in requests}) == DEMO_PROMPTS
    assert min(request.seed for request in requests) > 10_000
    assert len({request.prompt for request in requests}) > DEMO_PROMPTS // 2


@pytest.fixture(scope="module")
def shipped() -> Calibration:
    path = model_tables("demo", None)
    assert path is not None and path.parent == SHIPPED_WEIGHTS
    assert path.stat().st_size < 1_000_000
    return load_calibration(path)


@pytest.fixture(scope="module")
def readings() -> list[Observation]:
    """The last forward of each layer that read a history; its prompt and seed are not among those of the tables."""
    engine = build_engine(resolve(observing(Config())), (), ObservingCache)
    last: dict[int, Observation] = {}

    class Keeping(LayerStatistics):
        def add_reading(self, seen: Observation) -> None:
            last[id(self)] = seen

    layers = [Keeping(layer.layout) for layer in engine.cache.statistics]
    engine.cache.statistics[:] = layers
    prompt = "a large purple square moving up and a small blue cross on a teal background"
    engine.submit(VideoRequest("a", prompt, 40, seed=3))
    outputs = list(engine.run())
    engine.close()
    assert len(outputs) == 5
    return [last[id(layer)] for layer in layers]


def output_error(book: CodecBook, name: str, readings: list[Observation]) -> float:
    """Relative error of the attention output when history comes from pages, mean over layers and heads."""
    errors = []
    for layer, seen in enumerate(readings):
        history = []
        for kind, x_CHTD in (("keys", seen.k_CHTD), ("values", seen.v_CHTD)):
            codec = book.codec(read_codec(name), kind, layer, (0, 1, 2))
            records = codec.encode(x_CHTD.flatten(0, 1))
            out = torch.empty(len(records), read_codec(name).padded_tokens(book.page, x_CHTD.shape[2]), x_CHTD.shape[3])
            history.append(codec.decode(records, x_CHTD.shape[2], out).view_as(x_CHTD))
        stored = replace(seen, k_CHTD=history[0], v_CHTD=history[1])
        exact_HQD, got_HQD = seen.attention(0)[1], stored.attention(0)[1]
        errors.append((got_HQD - exact_HQD).norm(dim=(1, 2)) / exact_HQD.norm(dim=(1, 2)))
    return float(torch.cat(errors).mean())


def test_the_shipped_tables_are_those_of_the_model(shipped):
    run = resolve(Config())
    assert run.config.cache.codec.startswith("klt")
    spec = run.cache
    facts = (shipped.model, shipped.num_layers, shipped.num_kv_heads, shipped.head_dim)
    assert facts == ("demo", spec.num_layers, spec.num_kv_heads, spec.head_dim)
    assert (shipped.tokens_per_frame, shipped.frames_per_block) == (spec.tokens_per_frame, spec.frames_per_block)


@pytest.mark.parametrize(("name", "rows", "most"), [("klt1", 16, 0.065), ("klt2", 32, 0.030)])
def test_the_shipped_tables_give_the_error_that_was_measured(shipped, readings, name, rows, most):
    error = output_error(CodecBook(PageFormat(64, rows, 16, 8), 3, shipped), name, readings)
    int2 = output_error(CodecBook(PageFormat(64), 3), "int2", readings)
    print(name, error, int2)
    assert error < most and error < 0.5 * int2
