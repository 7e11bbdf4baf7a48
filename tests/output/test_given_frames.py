"""Images and videos to go on from: which frames are taken, and what is refused before anything is made."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import FrameFormat, PrefixFormat
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import GivenFramesError, StartTimeError
from pagedvid.files.fingerprint import fingerprint
from pagedvid.output.given_files import given_pictures
from pagedvid.output.given_frames import with_given_frames
from pagedvid.output.mp4 import VideoWriter

HEIGHT, WIDTH, SPEED = 32, 48, 8.0
STEP = 8
"""Between the grey levels of two frames: more than coding changes one."""


def engine(per_chunk: int = 4, per_latent: int = 1, max_chunks: int = 2, speed: float = SPEED, **format):
    """What is asked of an engine."""
    frames = FrameFormat(format.get("height", HEIGHT), format.get("width", WIDTH), speed, per_latent)
    model = SimpleNamespace(name="toy", prefix_format=lambda window: PrefixFormat(frames, per_chunk, max_chunks))
    return SimpleNamespace(model=model, window=Window(1, 1))


def picture(path, height=HEIGHT, width=WIDTH, **how):
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return pixels


def film(path, num_frames, speed=SPEED, scale=1):
    """Frame n is grey n * STEP all over."""
    writer = VideoWriter(path, speed, scale)
    for number in range(num_frames):
        writer.add(np.full((1, HEIGHT, WIDTH, 3), number * STEP, dtype=np.uint8))
    writer.finish()
    writer.publish()
    return path


def frames_for(engine, **inputs):
    request = with_given_frames(VideoRequest("a", "1", 3, inputs={"other": 1, **inputs}), engine)
    assert request.inputs.keys() == {"other", "prefix"}
    return request.inputs["prefix"]["frames"].numpy()


def numbers(frames) -> list[int]:
    """The numbers of a film's frames."""
    assert frames.shape[1:] == (HEIGHT, WIDTH, 3) and frames.dtype == np.uint8
    levels = frames.reshape(len(frames), -1).astype(float).mean(axis=1) / STEP
    assert np.abs(levels - levels.round()).max() < 0.3
    return levels.round().astype(int).tolist()


@pytest.mark.parametrize("name", ["a.png", "a.webp", "picture without an ending"])
@pytest.mark.parametrize(("per_latent", "num_frames"), [(1, 4), (4, 13)])
def test_an_image_stands_still_for_a_chunk(tmp_path, name, per_latent, num_frames):
    path = tmp_path / name
    how = {"format": "PNG"} if "." not in name else {"lossless": True} if name.endswith("webp") else {}
    pixels = picture(path, **how)
    frames = frames_for(engine(per_latent=per_latent), image=str(path))
    np.testing.assert_array_equal(frames, np.broadcast_to(pixels, (num_frames, *pixels.shape)))


def test_jpeg_images_are_read(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 60)).save(tmp_path / "a.jpg", quality=95)
    frames = frames_for(engine(), image=str(tmp_path / "a.jpg"))
    assert np.abs(frames.astype(int) - (200, 30, 60)).max() <= 4


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_an_image_that_a_camera_stored_sideways_is_turned(tmp_path, kind, orientation):
    path, notes = tmp_path / f"a.{kind}", Image.Exif()
    notes[ExifTags.Base.Orientation] = orientation
    sideways = orientation in (6, 8)
    picture(path, *((WIDTH, HEIGHT) if sideways else (HEIGHT, WIDTH)), exif=notes, lossless=True)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_array_equal(frames_for(engine(), image=str(path))[0], upright)


def test_a_video_that_a_camera_stored_sideways_is_turned(tmp_path):
    """By the matrix in its track's header: nine numbers, 40 bytes behind the name of the header."""
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, SPEED, 1)
    writer.add(np.full((8, WIDTH, HEIGHT, 3), 40, dtype=np.uint8) + np.arange(WIDTH, dtype=np.uint8)[:, None, None])
    writer.finish()
    writer.publish()
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    one = 1 << 16
    content[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, HEIGHT * one, 0, 1 << 30)
    path.write_bytes(content)
    frames = frames_for(engine(), video=str(path))
    assert frames.shape == (8, HEIGHT, WIDTH, 3)
    columns = frames.astype(float).mean(axis=(0, 1, 3))
    assert columns[0] > columns[-1] + 20, "turned clockwise: its first row is on the right"


def test_gray_and_transparent_images_are_read(tmp_path):
    Image.new("L", (WIDTH, HEIGHT), 90).save(tmp_path / "gray.png")
    Image.new("RGBA", (WIDTH, HEIGHT), (10, 20, 30, 255)).save(tmp_path / "alpha.png")
    assert np.abs(frames_for(engine(), image=str(tmp_path / "gray.png")).astype(int) - 90).max() <= 1
    assert np.abs(frames_for(engine(), image=str(tmp_path / "alpha.png")).astype(int) - (10, 20, 30)).max() <= 1


@pytest.mark.parametrize("kind", ["png", "webp", "palette"])
def test_what_is_transparent_is_shown_over_black(tmp_path, kind):
    """Whatever color it has: a third of the picture is opaque, one half transparent, and one not to be seen."""
    path, pixels = tmp_path / "a", np.full((HEIGHT, WIDTH, 4), (200, 100, 50, 255), dtype=np.uint8)
    pixels[:, WIDTH // 3 :, 3], pixels[:, 2 * WIDTH // 3 :, 3] = 128, 0
    if kind == "palette":
        picture = Image.fromarray(np.arange(WIDTH, dtype=np.uint8)[None].repeat(HEIGHT, axis=0) * 3 // WIDTH, "P")
        picture.putpalette([200, 100, 50] * 3)
        picture.save(path, format="PNG", transparency=bytes([255, 128, 0]))
    else:
        Image.fromarray(pixels).save(path, format=kind, lossless=True, exact=True)
    columns = frames_for(engine(), image=str(path))[0, HEIGHT // 2, [0, WIDTH // 2, WIDTH - 1]]
    assert np.abs(columns.astype(int) - [[200, 100, 50], [100, 50, 25], [0, 0, 0]]).max() <= 1


def test_a_whole_multiple_of_the_size_is_averaged(tmp_path):
    pixels = picture(tmp_path / "a.png", 3 * HEIGHT, 3 * WIDTH).astype(float)
    frames = frames_for(engine(), image=str(tmp_path / "a.png"))
    means = pixels.reshape(HEIGHT, 3, WIDTH, 3, 3).mean(axis=(1, 3))
    assert np.abs(frames[0] - means).max() <= 0.5


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


def test_files_of_enlarged_frames_are_reduced(tmp_path):
    path = film(tmp_path / "a.mp4", 8, scale=8)
    assert numbers(frames_for(engine(), video=str(path))) == list(range(8))


def test_a_request_without_any_is_left_alone():
    request = VideoRequest("a", "1", 3, inputs={"embeddings": "a.safetensors"})
    assert with_given_frames(request, engine()) is request


def test_a_model_that_takes_none_refuses(tmp_path):
    picture(tmp_path / "a.png")
    none = SimpleNamespace(model=SimpleNamespace(name="toy", prefix_format=lambda window: None), window=Window(1, 1))
    with pytest.raises(GivenFramesError, match='toy takes no image or video file; leave "image" out'):
        frames_for(none, image=str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("height", "width"), [(HEIGHT, HEIGHT), (2 * HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2), (17 * HEIGHT, 17 * WIDTH)]
)
def test_a_wrong_size_is_refused_with_those_that_are_right(tmp_path, height, width):
    picture(tmp_path / "a.png", height, width)
    message = rf"a\.png has {width} x {height} pixels \(width x height\); allowed are 48 x 32 and up to 16 times"
    with pytest.raises(GivenFramesError, match=message):
        frames_for(engine(), image=str(tmp_path / "a.png"))


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


def test_a_picture_that_would_fill_the_memory_is_not_decoded(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (12_000, 12_000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(GivenFramesError, match=r"a\.png cannot be read .*more than 100,000,000 pixels"):
        frames_for(engine(), image=str(path))


def spoiled(content: bytes, how: str) -> bytes:
    return {"cut": content[: len(content) // 3], "empty": b"", "text": b"ffconcat version 1.0\nfile /etc/passwd\n"}[how]


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, how):
    path = tmp_path / name
    if name == "a.png":
        picture(path)
    else:
        film(path, 12)
    path.write_bytes(spoiled(path.read_bytes(), how))
    field = "image" if name == "a.png" else "video"
    with pytest.raises(GivenFramesError, match=name.replace(".", r"\.")):
        frames_for(engine(), **{field: str(path)})


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_what_is_missing_of_a_picture_is_not_made_up(tmp_path, name):
    path = tmp_path / name
    picture(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(GivenFramesError, match=r"cannot be read .*; give a whole file of PNG"):
        frames_for(engine(), image=str(path))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.mp4"])
def test_whatever_is_spoiled_in_a_file_it_is_read_or_refused(tmp_path, name):
    """Names in films need not be text, either."""
    path = tmp_path / name
    if name == "a.mp4":
        film(path, 6)
    else:
        picture(path)
    whole, chance = path.read_bytes(), np.random.default_rng(4)
    num_refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for place in chance.integers(8 if name == "a.mp4" else 12, len(whole), chance.integers(1, 20)):
            content[place] = chance.integers(256)
        path.write_bytes(content[: chance.integers(len(whole) // 2, len(whole) + 1)])
        try:
            assert all(it.pixels_HWC.shape == (HEIGHT, WIDTH, 3) for it in given_pictures(path, HEIGHT, WIDTH))
        except GivenFramesError:
            num_refused += 1
    assert num_refused > 10


def test_a_file_that_is_gone_is_named_without_its_folder(tmp_path):
    """A service does not say where it keeps files."""
    with pytest.raises(GivenFramesError, match=r"^gone\.png cannot be read \(No such file"):
        frames_for(engine(), image=str(tmp_path / "gone.png"))


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
