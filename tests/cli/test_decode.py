"""`pagedvid decode` with a stand-in for the VAE: one file that fails does not stop the others."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from pagedvid.errors import ConfigError
from pagedvid.integrations import vae
from pagedvid.output.latents import LatentWriter
from pagedvid.output.mp4 import count_frames
from tests.output.faults import ERRORS, failing_call, file_size_limit

NUM_CHANNELS = 4


class StandIn:
    """Frames of noise, four for every latent frame after the first."""

    frames_per_latent = 4

    def __init__(self, *_):
        pass

    def decode(self, latents_FCRS):
        if latents_FCRS.shape[1] != NUM_CHANNELS:
            raise ConfigError("the latents are not of this VAE")
        if latents_FCRS.max() > 1:
            raise RuntimeError("out of\nmemory")
        shape = (4 * len(latents_FCRS) - 3, 16, 16, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def decode(monkeypatch, command, tmp_path):
    """decode(paths) -> (exit code, stdout, stderr)"""
    monkeypatch.setattr(vae, "VideoVae", StandIn)
    return lambda *paths: command("decode", *(paths or [tmp_path]), "--vae", tmp_path)


def write_latents(path, speed=6.0, channels=NUM_CHANNELS, value=0.0):
    writer = LatentWriter(path, speed)
    writer.add(np.full((2, channels, 2, 2), value, np.float32))
    writer.finish()
    writer.publish()


def made(folder):
    """The videos there, all of them whole."""
    videos = sorted(path for path in folder.glob("*.mp4") if path.is_file())
    assert all(count_frames(path) == 5 for path in videos)
    assert list(folder.glob("*.tmp")) == []
    return [path.stem for path in videos]


def test_each_bad_file_is_named_and_the_others_are_decoded(decode, tmp_path):
    write_latents(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    write_latents(tmp_path / "c.safetensors", channels=3)
    write_latents(tmp_path / "d.safetensors", value=2)
    write_latents(tmp_path / "e.safetensors", speed=1000)
    write_latents(tmp_path / "f.safetensors")
    (tmp_path / "f.mp4").mkdir()
    write_latents(tmp_path / "g.safetensors")
    code, stdout, stderr = decode()
    assert (code, made(tmp_path)) == (1, ["a", "g"])
    assert stdout == f"{tmp_path}/a.mp4  5 frames\n{tmp_path}/g.mp4  5 frames\n"
    lines = stderr.splitlines()
    assert [line.split()[:2] for line in lines] == [["failed", f"{tmp_path}/{name}.safetensors"] for name in "bcdef"]
    for line, reason in zip(
        lines,
        (
            "holds no latents of pagedvid",
            "the latents are not of this VAE",
            "RuntimeError: out of memory",
            "4000 frames per second are not possible",
            "Is a directory",
        ),
        strict=True,
    ):
        assert reason in line


def test_nothing_but_bad_input_is_bad_input(decode, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    write_latents(tmp_path / "b.safetensors", channels=3)
    code, stdout, stderr = decode()
    assert (code, stdout, stderr.count("failed")) == (2, "", 2)


def test_a_full_disk(decode, tmp_path):
    for name in "ab":
        write_latents(tmp_path / f"{name}.safetensors")
    with file_size_limit(2000):
        code, stdout, stderr = decode()
    assert (code, stdout, made(tmp_path)) == (1, "", [])
    assert [line.split("  ")[-1] for line in stderr.splitlines()] == ["File too large"] * 2
    assert decode()[0] == 0 and made(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("persists", [False, True], ids=["once", "for good"])
def test_each_call_fails_in_turn(decode, tmp_path, persists):
    for name in "ab":
        write_latents(tmp_path / f"{name}.safetensors")
    for number in count(1):
        for path in tmp_path.glob("*.mp4"):
            path.unlink()
        with failing_call(tmp_path, ERRORS[number % len(ERRORS)], number, persists) as calls:
            code, stdout, stderr = decode()
        if "unlink" in calls.failed:
            for path in tmp_path.glob("*.tmp"):
                path.unlink()
        assert code == 2 or (code == 1) == ("failed" in stderr)
        assert len(made(tmp_path)) == stdout.count("5 frames") >= (1 if code == 1 and not persists else 0)
        if not calls.failed:
            break
    assert (code, made(tmp_path)) == (0, ["a", "b"]) and number > 15


def test_a_file_named_twice_is_decoded_once(decode, tmp_path):
    write_latents(tmp_path / "a.safetensors")
    code, stdout, _ = decode(tmp_path, tmp_path / "a.safetensors")
    assert (code, stdout.count("\n")) == (0, 1)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a.mp4"], "would replace the latents"), (["a.safetensors", "a.latents"], "would both become")],
)
def test_no_video_is_written_over_another_file(decode, tmp_path, names, message):
    for name in names:
        write_latents(tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, stderr = decode(*(tmp_path / name for name in names))
    assert (code, stderr.count("\n"), message in stderr) == (2, 1, True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
