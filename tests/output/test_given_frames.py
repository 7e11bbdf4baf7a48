"""Images and videos to go on from: which frames are taken, and what is refused before anything is made."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pagedvid.cache.window import Window
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import GivenFramesError, StartTimeError
from pagedvid.files.fingerprint import fingerprint
from pagedvid.output.given_frames import with_given_frames
from tests.output.given import SPEED, engine, film, frames_for, numbers, picture


@pytest.mark.parametrize("name", ["a.png", "a.webp", "picture without an ending"])
@pytest.mark.parametrize(("per_latent", "num_frames"), [(1, 4), (4, 13)])
def test_an_image_stands_still_for_a_chunk(tmp_path, name, per_latent, num_frames):
    path = tmp_path / name
    how = {"format": "PNG"} if "." not in name else {"lossless": True} if name.endswith("webp") else {}
    pixels = picture(path, **how)
    frames = frames_for(engine(per_latent=per_latent), image=str(path))
    np.testing.assert_array_equal(frames, np.broadcast_to(pixels, (num_frames, *pixels.shape)))


@pytest.mark.parametrize(
    ("num_frames", "start", "expected"),
    [
        (12, None, range(4, 12)),  # two chunks of 4, as many as the window keeps
        (7, None, range(3, 7)),  # one whole chunk
        (4, None, range(4)),
        (20, 0.5, range(4)),
        (20, 1.0, range(8)),
        (20, 1.5, range(4, 12)),
        (20, 2.5, range(12, 20)),  # its end
        (20, 1.06, range(8)),  # between the frames 8 and 9: frame 8 is on the screen until then
    ],
)
def test_the_last_frames_before_the_start(tmp_path, num_frames, start, expected):
    path = film(tmp_path / "a.mp4", num_frames)
    inputs = {} if start is None else {"start_seconds": start}
    found = numbers(frames_for(engine(), video=str(path), **inputs))
    if start == 1.06:
        assert len(found) == 8 and found[-1] in (7, 8)
    else:
        assert found == list(expected)


def test_a_vae_takes_one_frame_more_than_four_for_each_further_latent(tmp_path):
    path = film(tmp_path / "a.mp4", 25)
    assert numbers(frames_for(engine(per_chunk=3, per_latent=4), video=str(path))) == list(range(4, 25))
    assert numbers(frames_for(engine(per_chunk=3, per_latent=4, max_chunks=1), video=str(path))) == list(range(16, 25))


@pytest.mark.parametrize(("speed", "expected"), [(16.0, range(8, 24, 2)), (4.0, [8, 8, 9, 9, 10, 10, 11, 11])])
def test_frames_are_taken_at_the_speed_of_the_model(tmp_path, speed, expected):
    path = film(tmp_path / "a.mp4", 24 if speed > SPEED else 12, speed)
    assert numbers(frames_for(engine(), video=str(path))) == list(expected)


def test_a_request_without_any_is_left_alone():
    request = VideoRequest("a", "1", 3, inputs={"embeddings": "a.safetensors"})
    assert with_given_frames(request, engine()) is request


def test_a_model_that_takes_none_refuses(tmp_path):
    picture(tmp_path / "a.png")
    none = SimpleNamespace(model=SimpleNamespace(name="toy", prefix_format=lambda window: None), window=Window(1, 1))
    with pytest.raises(GivenFramesError, match='toy takes no image or video file; leave "image" out'):
        frames_for(none, image=str(tmp_path / "a.png"))


def test_a_video_shorter_than_a_chunk_is_refused(tmp_path):
    path = str(film(tmp_path / "a.mp4", 8))
    with pytest.raises(
        StartTimeError, match=r"has 0\.25 s before the new video begins; it takes the 4 frames .*, 0\.5 s"
    ):
        frames_for(engine(), video=path, start_seconds=0.25)
    with pytest.raises(StartTimeError, match="has 0 s before the new video begins"):
        frames_for(engine(), video=path, start_seconds=0.0)
    with pytest.raises(GivenFramesError, match="takes the 9 frames of a chunk") as error:
        frames_for(engine(per_chunk=3, per_latent=4), video=path)
    assert not isinstance(error.value, StartTimeError), "no time was given"
    with pytest.raises(StartTimeError, match=r"start_seconds is 7; .* ends at 1 s"):
        frames_for(engine(), video=path, start_seconds=7.0)


def test_a_film_is_no_image_and_a_picture_no_film(tmp_path):
    film(tmp_path / "a.mp4", 12)
    picture(tmp_path / "a.png")
    with pytest.raises(GivenFramesError, match="holds more than one picture"):
        frames_for(engine(), image=str(tmp_path / "a.mp4"))
    with pytest.raises(GivenFramesError, match="it takes the 4 frames of a chunk"):
        frames_for(engine(), video=str(tmp_path / "a.png"))


def test_a_file_that_has_changed_is_refused(tmp_path):
    path = tmp_path / "a.png"
    pixels = picture(path)
    asked = fingerprint([path])
    np.testing.assert_array_equal(frames_for(engine(), image=str(path), digest=asked)[0], pixels)
    Image.fromarray(255 - pixels).save(path)
    with pytest.raises(GivenFramesError, match="has changed since the video was asked for"):
        frames_for(engine(), image=str(path), digest=asked)
