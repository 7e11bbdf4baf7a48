"""`pagedvid compare`: the demo model at two codecs, LPIPS by a stand-in, and everything that cannot be compared."""

from __future__ import annotations

import json
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pagedvid.output.mp4 import VideoWriter, read_frames
from pagedvid.output.sheet import SHEET_WIDTH
from pagedvid.quality import comparison, sheet
from pagedvid.quality.metrics import psnr, ssim
from pagedvid.quality.pairs import find_pairs

FAST = ("--frames", 20, "--set", "engine.denoise_steps=2", "--set", "generate.threads=1", "--memory", "16MiB")
LINES = ({"id": "red", "prompt": "a large red circle moving left"}, {"id": "blue", "prompt": "a blue square"})

pytestmark = pytest.mark.usefixtures("restore_threads")


@pytest.fixture
def no_lpips(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)


class StandIn(torch.nn.Module):
    """The mean absolute difference of its inputs, which are to be from -1 to 1."""

    def __init__(self, net, verbose):
        super().__init__()
        assert (net, verbose) == ("alex", False)

    def forward(self, a_NCHW, b_NCHW):
        assert a_NCHW.shape[:2] == (1, 3) and a_NCHW.min() >= -1 and a_NCHW.max() <= 1
        return (a_NCHW - b_NCHW).abs().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture
def lpips(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=StandIn))


def folder(tmp_path, name, **videos):
    """A folder of flat videos: folder(tmp_path, "a", x=100) or x=(100, num_frames, height, width)."""
    path = tmp_path / name
    path.mkdir()
    for video, given in videos.items():
        level, num_frames, *size = given if isinstance(given, tuple) else (given, 4, 32, 32)
        writer = VideoWriter(path / f"{video}.mp4", 12, scale=1)
        writer.add(np.full((num_frames, *size, 3), level, np.uint8))
        writer.finish()
        writer.publish()
    return path


def table(stdout):
    """Cells by the first word of each row."""
    rows = [line.split() for line in stdout.splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def test_the_demo_model_at_two_codecs(command, prompts, tmp_path, no_lpips):
    path, a, b = prompts(*LINES), tmp_path / "bf16", tmp_path / "int2"
    for out in (a, b):
        code, _, stderr = command("generate", "--prompts", path, "--out", out, *FAST, "--kv", out.name)
        assert code == 0, stderr
    files = ("--json", tmp_path / "q.json", "--sheet", tmp_path / "q.png")
    code, stdout, _ = command("compare", a, b, *files)
    assert code == 0
    assert max(map(len, table_lines(stdout))) <= 80
    data = json.loads((tmp_path / "q.json").read_text())
    assert [video["name"] for video in data["videos"]] == ["blue", "red"]
    for video in data["videos"]:
        frames = [np.array(read_frames(side / f"{video['name']}.mp4")) for side in (a, b)]
        assert (video["num_frames"], video["height"], video["width"]) == frames[0].shape[:3]
        assert video["psnr_db"] == pytest.approx(psnr(*frames)) and 20 < video["psnr_db"] < 58
        assert video["ssim"] == pytest.approx(ssim(*frames))
        changes = np.diff(np.array(frames).astype(float), axis=1)
        assert video["flicker"] == pytest.approx(np.abs(changes[0] - changes[1]).mean()) and video["flicker"] > 0
        assert f"{video['psnr_db']:.2f}" in table(stdout)[video["name"]]
        for side in "ab":
            entry = json.loads(((a, b)[side == "b"] / f"{video['name']}.json").read_text())
            assert video[f"cache_peak_bytes_{side}"] == entry["cache_peak_bytes"]
    both = [video["psnr_db"] for video in data["videos"]]
    psnr_mean = data["means"]["psnr_db"]
    assert psnr_mean["mean"] == pytest.approx(np.mean(both)) and psnr_mean["num_videos"] == 2
    assert psnr_mean["standard_error"] == pytest.approx(np.std(both, ddof=1) / np.sqrt(2))
    assert (data["a"]["codec"], data["b"]["codec"]) == ("bf16", "int2")
    assert "cache.codec: bf16 -> int2" in data["differing_settings"]
    assert "codec int2, cache" in stdout and "cache.codec: bf16 -> int2" in stdout
    assert "LPIPS is left out: its package is not there" in stdout and "pagedvid[lpips]" in stdout
    assert "lpips" not in data["means"]
    assert Image.open(tmp_path / "q.png").width == SHEET_WIDTH


def table_lines(stdout):
    lines = stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("video"))
    return lines[first : lines.index("", first)]


def test_with_lpips_the_table_still_fits_a_terminal(command, tmp_path, lpips):
    a = folder(tmp_path, "a", **{"a" * 90: (0, 3, 32, 32)})
    b = folder(tmp_path, "b", **{"a" * 90: (255, 3, 32, 32)})
    code, stdout, _ = command("compare", a, b, "--json", tmp_path / "q.json")
    assert code == 0 and "left out" not in stdout
    assert all(len(line) <= 80 for line in stdout.splitlines()[3:8])
    (video,) = json.loads((tmp_path / "q.json").read_text())["videos"]
    assert video["lpips"] == pytest.approx(2, abs=0.02)  # from -1 to 1, colours are those of the mp4
    assert json.loads((tmp_path / "q.json").read_text())["means"]["lpips"]["standard_error"] is None


def test_lpips_without_its_network_is_a_note(command, tmp_path, monkeypatch):
    def fail(**_):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=fail))
    a = folder(tmp_path, "a", x=10)
    code, stdout, _ = command("compare", a, a)
    assert code == 0 and "its network cannot be loaded (no route to host)" in stdout
    assert "LPIPS" not in next(line for line in stdout.splitlines() if line.startswith("video"))


def test_lpips_needs_frames_of_some_size(command, tmp_path, lpips):
    a = folder(tmp_path, "a", x=(10, 3, 16, 32))
    assert "LPIPS is left out: frames below 31 pixels a side in x" in command("compare", a, a)[1]


def test_equal_videos_have_the_highest_psnr(command, tmp_path, no_lpips):
    a = folder(tmp_path, "a", x=10, y=200)
    code, stdout, _ = command("compare", a, a)
    assert code == 0 and table(stdout)["x"] == ["58.92", "1.0000", "0.000", "0.000", "0.000"]
    assert "codec not known" in stdout


def test_two_files(command, tmp_path, no_lpips):
    a, b = folder(tmp_path, "a", x=(10, 1, 32, 32)), folder(tmp_path, "b", y=(90, 1, 32, 32))
    code, stdout, _ = command("compare", a / "x.mp4", b / "y.mp4")
    assert code == 0 and len(table(stdout)["x"]) == 2  # one frame has no flicker
    assert table(stdout)["standard"] == ["error", "-", "-"]


def test_what_cannot_be_compared_is_named_and_the_others_are_compared(command, tmp_path, no_lpips):
    videos = {"same": 10, "only_a": 10, "longer": (10, 5, 32, 32), "wider": (10, 4, 32, 48), "torn": 10, "none": 10}
    a = folder(tmp_path, "a", **videos)
    b = folder(tmp_path, "b", same=20, longer=10, wider=10, torn=10, none=10, only_b=10)
    (b / "torn.mp4").write_bytes((b / "torn.mp4").read_bytes()[:-100])
    (b / "none.mp4").write_bytes(b"no video")
    code, stdout, stderr = command("compare", a, b, "--json", tmp_path / "q.json")
    assert code == 1
    assert "mean of 1" in stdout and "same" in table(stdout)
    reasons = json.loads((tmp_path / "q.json").read_text())["left_out"]
    assert set(reasons) == {f"{name}.mp4" for name in ("only_a", "only_b", "longer", "wider", "torn", "none")}
    assert reasons["only_a.mp4"] == f"there is no {b / 'only_a.mp4'}"
    assert reasons["only_b.mp4"] == f"there is no {a / 'only_b.mp4'}"
    assert reasons["longer.mp4"] == "5 frames in the reference, 4 in the other"
    assert reasons["wider.mp4"] == "frames of 48 x 32 and 32 x 32 pixels"
    assert all(f"left out  {name}  {reason}" in stderr for name, reason in reasons.items())


def test_a_video_with_fewer_frames_than_it_says(command, tmp_path, no_lpips, monkeypatch):
    a, b = folder(tmp_path, "a", x=10), folder(tmp_path, "b", x=10)
    monkeypatch.setattr(
        "pagedvid.quality.comparison.frames_of", lambda path: read_frames(path)[: 3 if b in path.parents else 4]
    )
    code, _, stderr = command("compare", a, b)
    assert code == 2 and "4 frames were expected, 3 are in both" in stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "missing"), "must be two folders of videos, or two videos that exist"),
        (("a", "a/x.mp4"), "must be two folders of videos, or two videos that exist"),
        (("a", "empty"), "has no .mp4 files; give a folder that has some"),
        (("a", "latents"), "decode its latents with `pagedvid decode` first"),
        (("a", "other"), "none of x.mp4, y.mp4 could be compared"),
        (("a", "tiny"), "none of x.mp4 could be compared"),
        (("a", "a", "--json", "missing/q.json"), "cannot be written: give a file in a folder that exists"),
        (("a", "a", "--sheet", "a"), "cannot be written: give a file in a folder that exists"),
    ],
)
def test_nothing_to_compare(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path, "a", x=10)
    folder(tmp_path, "other", y=10)
    folder(tmp_path, "tiny", x=(10, 4, 6, 6))
    for name in ("empty", "latents"):
        folder(tmp_path, name)
    (tmp_path / "latents" / "x.safetensors").touch()
    code, stdout, stderr = command("compare", *words)
    assert (code, stdout) == (2, "")
    assert message in stderr.splitlines()[-1]


def test_other_given_images_are_noted_and_other_places_of_the_same_are_not(command, tmp_path, no_lpips):
    a, b = folder(tmp_path, "a", x=10), folder(tmp_path, "b", x=20)

    def notes(*inputs: dict[str, str]) -> list[str]:
        for path, given in zip((a, b), inputs, strict=True):
            entry = {"id": "x", "status": "done", "prompt": "p", "seed": 3, "num_frames": 4, "settings": {}}
            (path / "manifest.jsonl").write_text(json.dumps({**entry, "inputs": given}) + "\n")
        return [line for line in command("compare", a, b)[1].splitlines() if line.startswith("x: ")]

    here = {"image": "one.png", "digest": "1"}
    assert notes(here, {"image": "there/one.png", "digest": "1"}) == []
    assert notes(here, {"image": "one.png", "digest": "2"}) == ["x: digest: '1' -> '2'"]


def test_other_requests_are_noted_and_half_a_line_is_not(command, tmp_path, no_lpips):
    a, b = folder(tmp_path, "a", x=10), folder(tmp_path, "b", x=20)
    for path, seed in ((a, 3), (b, 4)):
        entry = {"id": "x", "status": "done", "prompt": "p", "seed": seed, "num_frames": 4, "settings": {}}
        (path / "manifest.jsonl").write_text(json.dumps(entry) + '\n{"id": "x", "sta')
    code, stdout, _ = command("compare", a, b)
    assert code == 0 and "x: seed: 3 -> 4" in stdout.splitlines()
    (b / "manifest.jsonl").write_text("{}\n")
    code, _, stderr = command("compare", a, b)
    assert code == 2 and "manifest.jsonl line 1 is not a manifest entry" in stderr


def test_the_sheet_shows_the_worst_videos_and_what_differs(command, tmp_path, no_lpips, monkeypatch):
    monkeypatch.setattr(sheet, "MAX_VIDEOS", 1)
    a, b = folder(tmp_path, "a", near=100, far=100), folder(tmp_path, "b", near=101, far=110)
    code, stdout, _ = command("compare", a, b, "--sheet", tmp_path / "q.png")
    assert code == 0 and "1 of 2 videos, the lowest PSNR first" in stdout
    pixels = np.array(Image.open(tmp_path / "q.png").convert("RGB")).astype(int)
    for level in (100, 110, 80):  # the reference, the other, eight times their difference
        assert (np.abs(pixels - level).max(axis=-1) <= 8).sum() > 4 * 130**2


def test_memory_does_not_grow_with_the_video(tmp_path, monkeypatch):
    frames_of, made, most = comparison.frames_of, [], 0

    def watched(path):
        nonlocal most
        for frame in frames_of(path):
            made.append(weakref.ref(frame))
            most = max(most, sum(frame() is not None for frame in made))
            yield frame

    monkeypatch.setattr(comparison, "frames_of", watched)
    a = folder(tmp_path, "a", x=(10, 64, 32, 32))
    (pair,) = find_pairs(a, a).pairs
    assert comparison.compare(pair, None).values["psnr_db"] > 58
    assert len(made) == 128 and most <= 6
