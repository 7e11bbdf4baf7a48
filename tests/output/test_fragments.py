"""Chunks as fragments of an mp4: every prefix is a video, with the right frames at the right times."""

from __future__ import annotations

import io
from collections import deque
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedvid.output.fragments import decoded, fragment, init_segment, write_whole
from pagedvid.output.mp4 import VideoShape, enlarge, frame_rate, video_shape

RATES = (Fraction(16), Fraction(24000, 1001), frame_rate(23.976), Fraction(1, 10_000), Fraction(1000))


def plain(levels, height=16, width=16):
    """uint8 [len(levels), height, width, 3]: a grey level each."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), height, width, 3))


def file_of(chunks, rate=RATES[0], scale=1):
    """Init segment and fragments of a video."""
    firsts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
    parts = [
        fragment(chunk, int(first), rate, number, scale)
        for number, (chunk, first) in enumerate(zip(chunks, firsts, strict=False), start=1)
    ]
    return init_segment(*chunks[0].shape[1:3], rate, scale), parts


def read(content):
    """(frame rate, number of each frame by its time, grey level of each frame)."""
    with av.open(io.BytesIO(content), format="mp4") as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        numbers = [frame.pts * stream.time_base * stream.average_rate for frame in frames]
        return stream.average_rate, numbers, [frame.to_ndarray(format="rgb24").mean() for frame in frames]


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1, 12, 4), (13, 16, 16), (5,)], ids=str)
def test_every_prefix_is_a_video(rate, sizes):
    levels = np.linspace(10, 240, sum(sizes)).astype(int)
    init, parts = file_of([plain(part) for part in np.split(levels, np.cumsum(sizes)[:-1])], rate)
    for length in range(1, len(sizes) + 1):
        num_frames = sum(sizes[:length])
        seen_rate, numbers, seen = read(init + b"".join(parts[:length]))
        assert seen_rate == rate
        assert numbers == list(range(num_frames))
        assert np.abs(np.array(seen) - levels[:num_frames]).max() <= 3


def test_the_frames_of_a_file_without_an_index_are_counted(tmp_path):
    path = tmp_path / "stream.mp4"
    init, parts = file_of([plain(range(5)), plain(range(3))])
    path.write_bytes(b"".join([init, *parts]))
    assert video_shape(path) == VideoShape(8, 16, 16)


def test_a_long_chunk_has_all_its_frames_in_one_fragment():
    """More than fit between two key frames."""
    init, parts = file_of([plain(np.arange(600) % 200)])
    assert (parts[0].count(b"moof"), parts[0].count(b"mfhd")) == (1, 1)
    assert read(init + parts[0])[1] == list(range(600))


def test_colours_survive():
    colours = np.array([[230, 30, 35], [40, 200, 70], [50, 100, 255], [245, 245, 245]], np.uint8).reshape(2, 2, 3)
    picture = colours.repeat(32, axis=0).repeat(32, axis=1)
    init, parts = file_of([np.stack([picture] * 4)])
    seen = decoded(init, parts[0])[:, 16::32, 16::32].astype(int)
    assert np.abs(seen - colours).max() <= 6


@pytest.mark.parametrize(("height", "width", "scale"), [(15, 21, 1), (1, 1, 1), (16, 9, 3), (7, 32, 2)])
def test_odd_sizes_are_padded_as_in_files(height, width, scale):
    chunks = [plain([40, 90], height, width), plain([200], height, width)]
    init, parts = file_of(chunks, scale=scale)
    assert decoded(init, b"".join(parts)).shape == (3, *enlarge(chunks[0], scale).shape[1:])


def test_a_fragment_says_its_number_and_the_time_of_its_first_frame():
    made = fragment(plain([10, 20]), 700, Fraction(16), 9)
    number, time = made.index(b"mfhd") + 8, made.index(b"tfdt") + 8
    assert int.from_bytes(made[number : number + 4], "big") == 9
    timescale = 16 * 2**10  # the library doubles the rate until it is at least 10,000
    assert int.from_bytes(made[time : time + 8], "big") == 700 * timescale // 16


def test_times_beyond_32_bits():
    init, late = init_segment(16, 16, Fraction(1, 10_000)), fragment(plain([9]), 2**20, Fraction(1, 10_000), 1)
    with av.open(io.BytesIO(init + late), format="mp4") as container:
        stream = container.streams.video[0]
        assert next(container.decode(stream)).pts * stream.time_base == 2**20 * 10_000


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 40), st.integers(1, 40))
def test_all_fragments_share_the_init_segment(sizes, height, width):
    """Whatever is in them: the decoder's settings depend on the size and speed only."""
    noise = np.random.default_rng(0)
    chunks = [noise.integers(0, 256, (size, height, width, 3), dtype=np.uint8) for size in sizes]
    init, parts = file_of(chunks)
    for chunk, part in zip(chunks, parts, strict=True):
        assert len(decoded(init, part)) == len(chunk)
    assert read(init + b"".join(parts))[1] == list(range(sum(sizes)))


def test_the_same_chunk_gives_the_same_bytes():
    chunk = np.random.default_rng(1).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)
    assert fragment(chunk, 8, RATES[1], 3) == fragment(chunk.copy(), 8, RATES[1], 3)


class TestWholeFiles:
    def test_same_frames_with_the_index_in_front(self, tmp_path):
        init, parts = file_of([plain([10, 60, 90]), plain([120]), plain([200, 240])], RATES[1])
        source = tmp_path / "a.mp4"
        source.write_bytes(init + b"".join(parts) + b"a fragment that is being written")
        whole = tmp_path / "whole.mp4"
        write_whole(source, len(init) + sum(map(len, parts)), whole)
        content = whole.read_bytes()
        assert content.index(b"moov") < content.index(b"mdat") and b"moof" not in content
        rate, numbers, seen = read(content)
        assert (rate, numbers) == (RATES[1], list(range(6)))
        assert np.abs(np.array(seen) - [10, 60, 90, 120, 200, 240]).max() <= 3
        with av.open(str(whole)) as container:
            stream = container.streams.video[0]
            assert stream.frames == 6
            assert stream.duration * stream.time_base == 6 / RATES[1]

    def test_a_failure_leaves_nothing(self, tmp_path):
        source = tmp_path / "a.mp4"
        source.write_bytes(b"no video")
        with pytest.raises(av.FFmpegError):
            write_whole(source, 8, tmp_path / "whole.mp4")
        assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("side", [8, 32, 34])
def test_the_same_frames_give_the_same_bytes(side):
    """However the memory looks that the encoder gets."""
    rows, columns = np.mgrid[:side, :side]
    disc = np.stack([(rows - side / 2) ** 2 + (columns - side / 2 + at) ** 2 < side * 2 for at in range(8)])
    frames = (disc[..., None] * np.array([200, 40, 40])).astype(np.uint8)
    random = np.random.default_rng(0)
    kept, contents = deque(maxlen=20), set()
    for _ in range(150):
        kept.append(random.integers(0, 255, random.integers(10, 50_000), np.uint8))
        contents.add(fragment(frames, 8, RATES[0], 2))
    assert len(contents) == 1
