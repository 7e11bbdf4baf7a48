"""Images and videos in jsonl files: what is read and refused; the video goes on from them, and others are made."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pagedvid.cli.generate_plan import plan_lines
from pagedvid.cli.prompts import read_prompts
from pagedvid.config.sections import CacheConfig, Config, GenerateConfig
from pagedvid.engine.protocol import FrameFormat
from pagedvid.errors import ConfigError
from pagedvid.files.fingerprint import fingerprint
from pagedvid.models.build import resolve
from pagedvid.output.mp4 import read_frames
from tests.cli.folders import manifest_lines

FAST = ("--frames", 16, "--set", "engine.denoise_steps=2", "--set", "generate.threads=1", "--memory", "16MiB")
RED = "a large red circle moving left on a black background"

pytestmark = pytest.mark.usefixtures("restore_threads")


@pytest.fixture
def image(tmp_path):
    """A teal picture with a white corner."""
    path = tmp_path / "given.png"
    pixels = np.full((32, 32, 3), (0, 128, 128), dtype=np.uint8)
    pixels[:8, :8] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_a_file_is_named_with_what_is_in_it(prompts, image):
    digest = fingerprint([image])
    path = prompts(
        {"prompt": RED, "id": "a", "image": "given.png"},
        {"prompt": RED, "id": "b", "video": str(image), "start_seconds": 2},
        {"prompt": RED, "id": "c"},
    )
    a, b, c = read_prompts(path, GenerateConfig())
    assert a.inputs == {"image": str(image), "digest": digest}
    assert b.inputs == {"video": str(image), "digest": digest, "start_seconds": 2.0}
    assert c.inputs == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "given.png", "video": "given.png"}, '"image" and "video" are both given; leave one of them out'),
        ({"image": "none.png"}, r'"image" is .*none\.png.*: there is no such file'),
        ({"image": "."}, '"image" is .*: there is no such file'),
        ({"image": 3}, '"image" is 3; it must be the name of a file'),
        ({"video": ""}, "\"video\" is ''; it must be the name of a file"),
        ({"image": "given.png", "start_seconds": 1}, '"start_seconds" is a time in a "video", which is missing'),
        ({"start_seconds": 1}, '"start_seconds" is a time in a "video", which is missing'),
        ({"video": "given.png", "start_seconds": -1}, '"start_seconds" is -1; it must be a number from 0'),
        ({"video": "given.png", "start_seconds": True}, '"start_seconds" is True'),
        ({"video": "given.png", "start_seconds": "1"}, "\"start_seconds\" is '1'"),
        *(
            ({"inputs": {name: "given.png"}}, f'"inputs" has "{name}", which is no input of a model; write "image"')
            for name in ("image", "video", "start_seconds", "digest")
        ),
    ],
)
def test_what_is_unclear_is_refused_with_its_line(prompts, image, fields, message):
    with pytest.raises(ConfigError, match=rf"^prompts\.jsonl:1: {message}"):
        read_prompts(prompts({"prompt": RED, **fields}), GenerateConfig())


@pytest.mark.parametrize(("seconds", "without", "with_image"), [(1 / 12, 1, 1), (4 / 12, 2, 1), (5 / 12, 2, 2)])
def test_prompts_count_from_the_new_video(prompts, image, seconds, without, with_image):
    """After given frames, the first latent frame gives four frames as well."""
    timed = {"prompts": [{"at_seconds": 0, "prompt": RED}, {"at_seconds": seconds, "prompt": RED}]}
    path = prompts({**timed, "id": "a"}, {**timed, "id": "b", "image": "given.png"})
    requests = read_prompts(path, GenerateConfig(num_frames=40), FrameFormat(32, 32, 12.0, 4))
    assert [it.later_prompts[0].first_frame for it in requests] == [without, with_image]


def test_the_plan_has_room_for_given_chunks(prompts, image):
    spec = resolve(Config(cache=CacheConfig(codec="int2", sink_chunks=1, recent_chunks=3)))
    lines = {
        name: plan_lines(spec, read_prompts(prompts({"prompt": RED, **fields}), GenerateConfig(num_frames=frames)))
        for name, fields, frames in (
            ("none", {}, 16),
            ("image", {"image": "given.png"}, 8),
            ("video", {"video": "given.png"}, 8),
            ("longest", {}, 400),
        )
    }
    rows = {name: next(line for line in all if line.startswith("as set")) for name, all in lines.items()}
    assert rows["image"] == rows["none"] != rows["video"]
    assert rows["video"] != rows["longest"], "the last chunk is not stored"


def test_a_video_goes_on_from_an_image_and_from_itself(command, prompts, image, tmp_path):
    out = tmp_path / "out"
    lines = [{"prompt": RED, "id": "new"}, {"prompt": RED, "id": "still", "image": "given.png"}]
    code, stdout, stderr = command("generate", "--prompts", prompts(*lines), "--out", out, *FAST)
    assert code == 0, stderr
    assert "frames  32 in" in stdout, "given frames are not part of the video"
    first = {id: np.array(read_frames(out / f"{id}.mp4")[0]).astype(int) for id in ("new", "still")}
    assert first["new"].shape == (256, 256, 3)
    assert np.abs(first["new"] - first["still"]).mean() > 5
    entries = {line["id"]: line["inputs"] for line in manifest_lines(out)}
    assert entries["still"] == {"image": str(image), "digest": fingerprint([image])}

    again = tmp_path / "again"
    more = [{"prompt": RED, "id": "more", "video": "out/still.mp4", "start_seconds": 1}]
    code, _, stderr = command("generate", "--prompts", prompts(*more), "--out", again, *FAST)
    assert code == 0, stderr
    assert len(read_frames(again / "more.mp4")) == 16


def test_a_walk_goes_on_from_its_own_file_and_finds_back(command, prompts, tmp_path):
    """With the trained weights; what it comes back to was read from a coded video."""
    out, back = tmp_path / "out", tmp_path / "back"
    fast = ("--model", "walk", *FAST[2:])
    first = prompts({"prompt": "map 7: right 5", "id": "a"})
    code, _, stderr = command("generate", "--prompts", first, "--frames", 6, "--out", out, *fast)
    assert code == 0, stderr
    more = prompts({"prompt": "left 5, up", "id": "b", "video": "out/a.mp4"})
    code, _, stderr = command("generate", "--prompts", more, "--frames", 6, "--out", back, *fast)
    assert code == 0, stderr
    outward, homeward = (np.array(read_frames(path)).astype(float) for path in (out / "a.mp4", back / "b.mp4"))
    errors = ((outward[4::-1] - homeward[:5]) ** 2).mean(axis=(1, 2, 3))
    assert errors.max() < 100, "at least 28 dB"
    assert ((outward[0] - homeward[5]) ** 2).mean() > 200, "the last step leads elsewhere"


def test_files_that_cannot_be_used_fail_their_videos_only(command, prompts, image, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (32, 40)).save(tmp_path / "tall.png")
    lines = [
        {"prompt": RED, "id": "text", "image": "text.png"},
        {"prompt": RED, "id": "tall", "image": "tall.png"},
        {"prompt": RED, "id": "short", "video": "given.png"},
        {"prompt": RED, "id": "fine", "image": "given.png"},
    ]
    out = tmp_path / "out"
    code, _, stderr = command("generate", "--prompts", prompts(*lines), "--out", out, *FAST)
    assert code == 1
    assert "text.png is none of PNG, JPEG, WebP (pictures) and mp4 (videos)" in stderr
    assert "tall.png has 32 x 40 pixels (width x height); allowed are 32 x 32" in stderr
    assert "it takes the 8 frames of a chunk" in stderr
    status = {line["id"]: line["status"] for line in manifest_lines(out)}
    assert status == {"text": "failed", "tall": "failed", "short": "failed", "fine": "done"}


def test_another_picture_under_the_same_name_is_named(command, prompts, image, tmp_path):
    words = ("generate", "--prompts", prompts({"prompt": RED, "image": "given.png"}), "--out", tmp_path / "out", *FAST)
    assert command(*words)[0] == 0
    Image.new("RGB", (32, 32)).save(image)
    code, _, stderr = command(*words, "--resume")
    assert code == 2 and "digest: " in stderr
