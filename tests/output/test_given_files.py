"""Files of given frames: what their pixels are, and which files cannot be read."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from pagedvid.errors import GivenFramesError
from pagedvid.output.given_files import given_pictures
from pagedvid.output.mp4 import VideoWriter
from tests.output.given import HEIGHT, SPEED, WIDTH, engine, film, frames_for, numbers, picture


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


def test_files_of_enlarged_frames_are_reduced(tmp_path):
    path = film(tmp_path / "a.mp4", 8, scale=8)
    assert numbers(frames_for(engine(), video=str(path))) == list(range(8))


@pytest.mark.parametrize(
    ("height", "width"), [(HEIGHT, HEIGHT), (2 * HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2), (17 * HEIGHT, 17 * WIDTH)]
)
def test_a_wrong_size_is_refused_with_those_that_are_right(tmp_path, height, width):
    picture(tmp_path / "a.png", height, width)
    message = rf"a\.png has {width} x {height} pixels \(width x height\); allowed are 48 x 32 and up to 16 times"
    with pytest.raises(GivenFramesError, match=message):
        frames_for(engine(), image=str(tmp_path / "a.png"))


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


@pytest.mark.parametrize("brand", [b"avif", b"avis", b"heic", b"mif1"])
def test_pictures_in_the_container_of_films_are_no_films(tmp_path, brand):
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0\x20ftyp" + brand + bytes(100))
    with pytest.raises(GivenFramesError, match=r"a\.avif is none of PNG, JPEG, WebP \(pictures\) and mp4"):
        frames_for(engine(), video=str(path))
