"""Prompts by time in jsonl files: what is read and refused; videos, manifests and --resume follow them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pagedvid.cli.prompts import read_prompts
from pagedvid.config.sections import GenerateConfig
from pagedvid.engine.protocol import FrameFormat
from pagedvid.engine.requests import LaterPrompt
from pagedvid.errors import ConfigError
from pagedvid.output.mp4 import read_frames
from tests.cli.folders import manifest_lines

FAST = ("--frames", 24, "--set", "engine.denoise_steps=2", "--set", "generate.threads=1", "--memory", "16MiB")
RED, BLUE = "a large red circle moving left", "a small blue square moving right"
FRAMES = FrameFormat(32, 32, 12.0)

pytestmark = pytest.mark.usefixtures("restore_threads")


def entries(*timed: tuple) -> list[dict]:
    return [dict(zip(("at_seconds", "prompt", "recache"), each, strict=False)) for each in timed]


def line(*timed: tuple, **fields: object) -> dict:
    return {"id": "a", "prompts": entries(*timed), **fields}


def test_times_become_frames(prompts):
    path = prompts(line((0, RED), (0.1, BLUE, True), (1, RED), (1.5, BLUE, False)))
    (request,) = read_prompts(path, GenerateConfig(num_frames=24), FRAMES)
    assert (request.id, request.prompt) == ("a", RED)
    # 0.1 s is between the frames 1 and 2
    assert request.later_prompts == (LaterPrompt(2, BLUE, True), LaterPrompt(12, RED), LaterPrompt(18, BLUE))


@pytest.mark.parametrize(
    ("speed", "per_latent", "seconds", "latent"),
    [
        (None, 1, 1, 12),
        (24.0, 1, 1, 24),  # as the file is played
        (None, 4, 1 / 12, 1),  # frame 1 is the first of latent frame 1, which has the frames 1 to 4
        (None, 4, 2 / 12, 2),
        (None, 4, 5 / 12, 2),
        (None, 4, 6 / 12, 3),
        (30.0, 1, 0.1, 3),  # 0.1 * 30 is not a whole number in binary
    ],
)
def test_the_first_latent_frame_at_or_after_a_time(prompts, speed, per_latent, seconds, latent):
    frames = FrameFormat(32, 32, 12.0, per_latent)
    path = prompts(line((0, RED), (seconds, BLUE)))
    (request,) = read_prompts(path, GenerateConfig(num_frames=40, frames_per_second=speed), frames)
    assert [it.first_frame for it in request.later_prompts] == [latent]


def test_latents_have_times_once_their_speed_is_given(prompts):
    path = prompts(line((0, RED), (2, BLUE)))
    with pytest.raises(ConfigError, match=r"prompts.jsonl:1: .* add --set generate.frames_per_second=N"):
        read_prompts(path, GenerateConfig(num_frames=24))
    (request,) = read_prompts(path, GenerateConfig(num_frames=24, frames_per_second=4.0))
    assert request.later_prompts == (LaterPrompt(8, BLUE),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": []}, '"prompts" is []; it must be a list such as'),
        ({"prompts": "red"}, "\"prompts\" is 'red'"),
        ({"prompts": ["red"]}, "entry 1 of \"prompts\" is 'red'; it must be an object"),
        (line((0, RED), prompt=RED), '"prompts" and "prompt" are both given'),
        ({"prompts": [{"at_seconds": 0, "promt": RED}]}, 'entry 1 of "prompts": unknown field "promt" - did you mean'),
        ({"prompts": [{"at_seconds": 0}]}, 'entry 1 of "prompts": "prompt" is None'),
        (line((0, RED), (1, " ")), 'entry 2 of "prompts": "prompt" is \' \''),
        (line((0, RED), ("1", BLUE)), 'entry 2 of "prompts": "at_seconds" is \'1\'; it must be a number'),
        (line((0, RED), (True, BLUE)), '"at_seconds" is True'),
        (line((0, RED), (-1, BLUE)), '"at_seconds" is -1'),
        (line((0, RED), (1e300, BLUE)), '"at_seconds" is 1e+300; it must be a number from 0 to 1,000,000,000'),
        (line((0, RED), (1, BLUE, 1)), '"recache" is 1; it must be true or false'),
        (line((0.5, RED)), 'entry 1 of "prompts" has "at_seconds" 0.5'),
        (line((0, RED, True)), "where there is nothing to store again"),
        (line((0, RED), (1, BLUE), (1, RED)), 'entry 3 of "prompts" is at 1 s, the one before it at 1 s'),
        (line((0, RED), (1.01, BLUE), (1.02, RED)), "begins in the same (latent) frame"),
        (
            line((0, RED), (2, BLUE)),
            "at 2 s is beyond the end of the video, which has 24 (latent) frames and lasts 2 s",
        ),
        (line((0, RED), (1, BLUE), num_frames=12), "at 1 s is beyond the end"),
        (line((0, RED), (1, "x" * 10_001)), "the prompt has 10001 characters"),
    ],
)
def test_what_is_unclear_is_refused_with_its_line(prompts, given, message):
    path = prompts({"prompt": RED}, given)
    with pytest.raises(ConfigError) as raised:
        read_prompts(path, GenerateConfig(num_frames=24), FRAMES)
    assert str(raised.value).startswith("prompts.jsonl:2: ") and message in str(raised.value)


def test_embeddings_and_a_schedule_are_refused(prompts, tmp_path):
    (tmp_path / "e.safetensors").touch()
    path = prompts(line((0, RED), inputs={"embeddings": "e.safetensors"}))
    with pytest.raises(ConfigError, match='"prompts" and "embeddings" are both given'):
        read_prompts(path, GenerateConfig(), FRAMES)


def frames(folder, name):
    return np.array(read_frames(folder / f"{name}.mp4"))


@pytest.mark.parametrize("recache", [False, True])
def test_the_video_is_that_of_a_call_at_the_boundary(command, prompts, tmp_path, recache):
    """Chunks have 8 frames: 0.5 s is in the middle of chunk 0, so the prompt counts from chunk 1 on."""
    from pagedvid.config.file import Setting, resolve
    from pagedvid.engine.requests import ChunkOutput, VideoRequest
    from pagedvid.models import build
    from pagedvid.output.mp4 import VideoWriter

    path = prompts(line((0, RED), (0.5, BLUE, recache)), {"id": "plain", "prompt": RED, "seed": 0})
    code, _, stderr = command("generate", "--prompts", path, "--out", tmp_path / "out", *FAST)
    assert code == 0, stderr

    words = {"engine": {"denoise_steps": 2}, "cache": {"memory": "16MiB"}, "generate": {"threads": 1}}
    written = [Setting(section, key, value, "test") for section, keys in words.items() for key, value in keys.items()]
    engine = build.build_engine(build.resolve(resolve(written).config), [])
    engine.submit(VideoRequest("a", RED, 24, seed=0))
    writer, chunks = VideoWriter(tmp_path / "expected.mp4", 12, scale=8), []
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output, ChunkOutput)
            chunks.append(output.frames)
            if output.chunk_index == 0:
                engine.prompt("a", BLUE, recache=recache)
    writer.add(np.concatenate(chunks))
    writer.finish()
    writer.publish()
    found, expected, plain = (
        frames(tmp_path / "out", "a"),
        frames(tmp_path, "expected"),
        frames(tmp_path / "out", "plain"),
    )
    assert np.abs(found.astype(int) - expected).mean() < 0.5  # it shared its forwards with the other video
    assert np.abs(found[:8].astype(int) - plain[:8]).mean() < 0.5
    assert np.abs(found.astype(int) - plain)[8:].mean() > 1.5


def test_manifest_and_resume_know_the_schedule(command, prompts, tmp_path):
    out, schedule = tmp_path / "out", line((0, RED), (1, BLUE, True))
    words = ("generate", "--out", out, *FAST, "--prompts")
    assert command(*words, prompts(schedule))[0] == 0
    later = [{"first_frame": 12, "prompt": BLUE, "recache": True}]
    assert manifest_lines(out)[0]["later_prompts"] == later
    assert json.loads((out / "a.json").read_text())["later_prompts"] == later
    code, stdout, _ = command(*words, prompts(schedule), "--resume")
    assert code == 0 and "1 done before" in stdout
    for changed in (line((0, RED), (1, BLUE)), {"id": "a", "prompt": RED}):
        code, _, stderr = command(*words, prompts(changed), "--resume")
        assert code == 2 and "was made differently" in stderr and "later prompts: " in stderr


def test_a_line_of_an_earlier_version_has_no_schedule(command, prompts, tmp_path):
    out = tmp_path / "out"
    words = ("generate", "--out", out, *FAST, "--prompts")
    assert command(*words, prompts({"id": "a", "prompt": RED}))[0] == 0
    (entry,) = manifest_lines(out)
    del entry["later_prompts"]
    (out / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
    code, stdout, _ = command(*words, prompts({"id": "a", "prompt": RED}), "--resume")
    assert code == 0 and "1 done before" in stdout


def test_unknown_words_fail_that_video_before_it_is_made(command, prompts, tmp_path):
    path = prompts(line((0, RED), (1, "xylophone music")), {"id": "b", "prompt": RED})
    code, _, stderr = command("generate", "--prompts", path, "--out", tmp_path / "out", *FAST)
    assert code == 1 and "xylophone" in next(text for text in stderr.splitlines() if text.startswith("failed  a"))
    assert [path.stem for path in (tmp_path / "out").glob("*.mp4")] == ["b"]
