"""Frames to mp4 and back."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedvid.errors import ConfigError
from pagedvid.files.atomic import temporary_path
from pagedvid.output import mp4
from pagedvid.output.mp4 import VideoWriter, count_frames, enlarge, frame_rate, read_frames, write_errors

COLORS = np.array([[230, 30, 35], [40, 200, 70], [50, 100, 255], [245, 245, 245]], dtype=np.uint8)


def four_squares(num_frames: int, size: int = 16) -> np.ndarray:
    """uint8 [num_frames, size, size, 3]: a colour in each quarter."""
    picture = COLORS.reshape(2, 2, 3).repeat(size // 2, axis=0).repeat(size // 2, axis=1)
    return np.broadcast_to(picture, (num_frames, size, size, 3))


def write(path, frames, frames_per_second=8.0, scale=8):
    writer = VideoWriter(path, frames_per_second, scale)
    for frame in frames:
        writer.add(frame[None])
    writer.finish()
    writer.publish()


def test_frames_size_and_colours_survive(tmp_path):
    path = tmp_path / "a.mp4"
    write(path, four_squares(20))
    frames = read_frames(path)
    assert count_frames(path) == len(frames) == 20
    for frame in frames:
        assert frame.shape == (128, 128, 3)
        seen = frame[32::64, 32::64].reshape(-1, 3).astype(int)
        assert np.abs(seen - COLORS).max() <= 6


def test_the_file_is_what_players_expect(tmp_path):
    path = tmp_path / "a.mp4"
    write(path, four_squares(12), frames_per_second=7.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 7.5
        assert float(stream.duration * stream.time_base) == pytest.approx(12 / 7.5)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index comes first, so that playing starts at once"


def test_frames_arrive_in_order_however_they_are_split(tmp_path):
    path = tmp_path / "a.mp4"
    levels = np.arange(10, 250, 12, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), 16, 16, 3))
    writer = VideoWriter(path, 8, 2)
    for part in np.array_split(frames, [3, 4, 11]):
        writer.add(part)
    writer.finish()
    writer.publish()
    seen = [int(frame.mean()) for frame in read_frames(path)]
    assert np.abs(np.array(seen) - levels).max() <= 3


def test_read_some_frames(tmp_path):
    path = tmp_path / "a.mp4"
    write(path, four_squares(10))
    assert len(read_frames(path, [0, 4, 9])) == 3


def test_nothing_under_the_final_name_until_published(tmp_path):
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, 8, 8)
    writer.add(four_squares(4))
    assert not path.exists()
    writer.finish()
    assert not path.exists()
    assert temporary_path(path).exists()
    writer.publish()
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("num_frames", [0, 1, 60])
def test_discard_leaves_nothing(tmp_path, num_frames):
    writer = VideoWriter(tmp_path / "a.mp4", 8, 8)
    if num_frames:
        writer.add(four_squares(num_frames))
    writer.discard()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_discard_does_not_touch_a_published_video(tmp_path):
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, 8, 8)
    writer.add(four_squares(4))
    writer.finish()
    writer.publish()
    writer.discard()
    assert len(read_frames(path)) == 4


def test_a_folder_that_is_gone_is_a_write_error(tmp_path):
    writer = VideoWriter(tmp_path / "none" / "a.mp4", 8, 8)
    with pytest.raises(write_errors()):  # at the first packet, which the encoder holds back for some frames
        writer.add(four_squares(1))
        writer.finish()
    writer.discard()


def test_enlarge_repeats_pixels_and_makes_sizes_even():
    frames = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)
    doubled = enlarge(frames, 2)
    assert doubled.shape == (2, 6, 10, 3)
    assert (doubled[:, ::2, 1::2] == frames).all()
    same = enlarge(frames, 1)
    assert same.shape == (2, 4, 6, 3)
    assert (same[:, :3, :5] == frames).all()
    assert (same[:, 3] == same[:, 2]).all()
    assert (same[:, :, 5] == same[:, :, 4]).all()


class TestSpeed:
    SPEEDS = st.one_of(
        st.floats(mp4.MIN_FRAMES_PER_SECOND, mp4.MAX_FRAMES_PER_SECOND),
        st.integers(1, 10**6).map(lambda number: number / 10**4),
        st.sampled_from([24000 / 1001, 30000 / 1001, 1 / 3, 0.0001, 1000.0, 240.000001, 1.0005, 12.345678]),
    )

    @settings(max_examples=25)
    @given(SPEEDS)
    def test_the_file_has_the_speed_that_was_asked_for(self, tmp_path_factory, speed):
        path = tmp_path_factory.mktemp("speed") / "a.mp4"
        write(path, four_squares(3, size=2), frames_per_second=speed)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == frame_rate(speed)
            times = [frame.time for frame in container.decode(stream)]
        assert float(frame_rate(speed)) == pytest.approx(speed, rel=1e-6)
        assert np.array(times) * speed == pytest.approx([0, 1, 2], rel=1e-5)

    @pytest.mark.parametrize(("written", "held"), [("23.976", "23.976"), ("0.0001", "0.0001"), ("29.97", "29.97")])
    def test_a_decimal_is_held_exactly(self, written, held):
        assert frame_rate(float(written)) == Fraction(held)

    def test_broadcast_speeds_are_the_exact_fractions(self):
        assert frame_rate(24000 / 1001) == Fraction(24000, 1001)

    @pytest.mark.parametrize("speed", [0, -1, 0.00009, 1000.1, float("nan"), float("inf"), 1e-300])
    def test_other_speeds_are_refused_before_there_is_a_file(self, tmp_path, speed):
        with pytest.raises(ConfigError, match=r"an mp4 file, which allows 0\.0001 to 1000; change"):
            VideoWriter(tmp_path / "a.mp4", speed, 1)
        assert list(tmp_path.iterdir()) == []


NUM_FRAMES = 900


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """Frames that show their numbers, one bit in each of ten stripes."""
    path = tmp_path_factory.mktemp("long") / "a.mp4"
    writer = VideoWriter(path, 23.976, 4)
    numbers = np.arange(NUM_FRAMES)[:, None, None, None]
    bits = ((numbers >> np.arange(10)[:, None]) & 1) * np.ones((4, 1, 3), int)
    writer.add((bits * 255).astype(np.uint8))
    writer.finish()
    writer.publish()
    return path


class TestLongVideos:
    @staticmethod
    def number(frame):
        return sum(int(frame[:, 4 * bit : 4 * bit + 4].mean() > 128) << bit for bit in range(10))

    @pytest.mark.parametrize(
        "indices", [[0, 1, 2], [899], [0, 129, 257, 385, 514, 642, 770, 899], [249, 250, 251, 501], [3, 400, 401, 898]]
    )
    def test_frames_are_found_exactly(self, long_video, indices):
        assert [self.number(frame) for frame in read_frames(long_video, indices)] == indices

    def test_frames_in_between_are_skipped(self, long_video):
        decoded = []

        class Watched:
            def __init__(self, container):
                self.container, self.streams, self.seek = container, container.streams, container.seek

            def decode(self, stream):
                return (decoded.append(frame) or frame for frame in self.container.decode(stream))

        with av.open(str(long_video)) as container:
            assert len(list(mp4._frames_at(Watched(container), [0, 5, 899]))) == 3
        assert len(decoded) < NUM_FRAMES // 2

    def test_a_frame_beyond_the_end_is_named(self, long_video):
        with pytest.raises(OSError, match="ends before its frame 900"):
            read_frames(long_video, [0, 900])


def test_an_index_that_was_written_wrongly_is_noticed(tmp_path):
    """The muxer ignores some failures; here it loses a frame."""
    writer = VideoWriter(tmp_path / "a.mp4", 8, 1)
    writer.add(four_squares(5))
    writer.num_frames += 1
    with pytest.raises(OSError, match="it has 5 frames at 8 per second instead of 6 at 8"):
        writer.finish()
    writer.discard()
    assert list(tmp_path.iterdir()) == []
