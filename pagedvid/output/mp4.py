"""Frames -> mp4 (H.264, yuv420p) and back, through PyAV.

Only this file imports `av`, when a video is written or read: whoever embeds the cache needs no video library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pagedvid.errors import ConfigError
from pagedvid.files import atomic
from pagedvid.shown import named

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

MIN_FRAMES_PER_SECOND, MAX_FRAMES_PER_SECOND = 0.0001, 1000.0
"""Frame rates that an mp4 file can have. A frame lasts at most 2^31 ticks of at most 1/10,000 s each; H.264 counts half
ticks in 32 bits."""

_FINEST_DENOMINATOR = 1_000_000
_KEYFRAME_INTERVAL = 250
"""Frames between key frames: at most as many are decoded to reach a given frame."""
_PROBE_BYTES = 4096
"""More than the header, which the library writes first."""
_BT709 = 1
_QUALITY = {"crf": "16", "preset": "medium", "rc-lookahead": "10"}
"""Fine enough to keep plain colours; a short look-ahead, because its frames stay in memory for every running video."""

Frames = NDArray[np.uint8]


def av_library() -> Any:
    """The module `av`. Raises ConfigError if it is not installed."""
    try:
        import av
        import av.video.reformatter
    except ImportError as error:
        raise ConfigError(f"videos are written and read with the library PyAV ({error}): pip install av") from error
    return av


def write_errors() -> tuple[type[Exception], ...]:
    """What writing a video can raise: the disk is full, the folder is gone, the encoder fails."""
    return OSError, av_library().FFmpegError


def frame_rate(frames_per_second: float) -> Fraction:
    """The frame rate in the file: exact for up to six decimals, otherwise within one part in a million.

    Raises ConfigError for a rate that no mp4 file can have.
    """
    if not MIN_FRAMES_PER_SECOND <= frames_per_second <= MAX_FRAMES_PER_SECOND:
        raise ConfigError(
            f"{frames_per_second:g} frames per second are not possible in an mp4 file, which allows "
            f"{MIN_FRAMES_PER_SECOND:g} to {MAX_FRAMES_PER_SECOND:g}; change generate.frames_per_second"
        )
    return Fraction(frames_per_second).limit_denominator(_FINEST_DENOMINATOR)


def enlarge(frames_FHWC: Frames, scale: int) -> Frames:
    """Every pixel `scale` times as wide and high; an odd size is padded by an edge row or column, as H.264 requires."""
    frames = frames_FHWC.repeat(scale, axis=1).repeat(scale, axis=2)
    odd_rows, odd_columns = frames.shape[1] % 2, frames.shape[2] % 2
    if odd_rows or odd_columns:
        frames = np.pad(frames, ((0, 0), (0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
    return frames


def pictures(frames_FHWC: Frames) -> Iterator[av.VideoFrame]:
    """Frames of even size as the encoder takes them: yuv420p in BT.709."""
    library = av_library()
    kinds, reformatter = library.video.reformatter, library.video.reformatter.VideoReformatter()
    for frame in frames_FHWC:
        yield reformatter.reformat(
            library.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
            format="yuv420p",
            dst_colorspace=kinds.Colorspace.ITU709,
            dst_color_range=kinds.ColorRange.MPEG,
            threads=1,
        )


def configure(stream: Any, height: int, width: int, quality: Mapping[str, str]) -> None:
    """Prepares a new H.264 stream for `pictures` of this size."""
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv420p"
    stream.options = dict(quality)
    context = stream.codec_context
    context.gop_size = _KEYFRAME_INTERVAL
    context.thread_count = 1  # the model's threads are busy; one is plenty for the encoder
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = av_library().video.reformatter.ColorRange.MPEG


class VideoWriter:
    """Writes frames to a temporary file next to `path`; `publish` renames it once it is complete."""

    def __init__(self, path: Path, frames_per_second: float, scale: int) -> None:
        """Raises ConfigError for a rate that the file cannot have or without PyAV, and one of `write_errors()`."""
        self._av = av_library()
        self.path = path
        self.num_frames = 0
        self._rate = frame_rate(frames_per_second)
        self._scale = scale
        self._container = self._av.open(
            str(atomic.temporary_path(path)), "w", format="mp4", options={"movflags": "faststart"}
        )
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        self._is_open = True

    def add(self, frames_FHWC: Frames) -> None:
        """Appends frames, uint8 [frames, height, width, 3]. Raises one of `write_errors()`."""
        frames = enlarge(frames_FHWC, self._scale)
        if self.num_frames == 0:
            # The library never closes a file whose first bytes do not fit on the disk; too many open files follow.
            atomic.temporary_path(self.path).write_bytes(bytes(_PROBE_BYTES))
            configure(self._stream, frames.shape[1], frames.shape[2], _QUALITY)
        for picture in pictures(frames):
            picture.pts = self.num_frames
            self._container.mux(self._stream.encode(picture))
            self.num_frames += 1

    def finish(self) -> None:
        """Writes the last frames and the index, which completes the temporary file. Raises one of `write_errors()`.

        The index is read back, because the library does not report every error of writing it.
        """
        self._container.mux(self._stream.encode(None))
        self._is_open = False
        self._container.close()
        with self._av.open(str(atomic.temporary_path(self.path))) as container:
            stream = container.streams.video[0]
            if (stream.frames, stream.average_rate) != (self.num_frames, self._rate):
                raise OSError(
                    f"the file was not written correctly: it has {stream.frames} frames at {stream.average_rate} per "
                    f"second instead of {self.num_frames} at {self._rate}"
                )

    def publish(self) -> None:
        """Gives the finished video its name. Raises OSError."""
        atomic.publish(self.path)

    def discard(self) -> None:
        """Removes what was written, unless it is published. Never raises."""
        if self._is_open:
            self._is_open = False
            # Closing writes the index of a file that is about to be removed, so a failure does not matter.
            with suppress(*write_errors()):
                self._container.close()
        atomic.discard(self.path)


def read_frames(path: Path, indices: Sequence[int] | None = None) -> list[Frames]:
    """Decoded frames of a `VideoWriter`'s video, each uint8 [height, width, 3]: all, or those at ascending `indices`.

    Between frames that are far apart it seeks, so the time does not depend on the length of the video. Raises
    ConfigError without PyAV, and one of `write_errors()`.
    """
    if indices is None:
        return list(frames_of(path))
    with av_library().open(str(path)) as container:
        return list(_frames_at(container, indices))


def frames_of(path: Path) -> Iterator[Frames]:
    """All decoded frames in order, one at a time, each uint8 [height, width, 3]. Raises as `read_frames`."""
    with av_library().open(str(path)) as container:
        for frame in container.decode(video=0):
            yield _pixels(frame)


def _frames_at(container: InputContainer, indices: Sequence[int]) -> Iterator[Frames]:
    stream = container.streams.video[0]
    rate, tick = stream.average_rate, stream.time_base
    assert rate is not None and tick is not None, "a video stream that was opened from a file has both"
    position, decoded = 0, container.decode(stream)
    for index in indices:
        if index - position > _KEYFRAME_INTERVAL:
            container.seek(round(index / (rate * tick)), stream=stream)
            decoded = container.decode(stream)
        frame = next((frame for frame in decoded if round((frame.pts or 0) * tick * rate) >= index), None)
        if frame is None:
            raise OSError(f"the video ends before its frame {index}")
        position = index + 1
        yield _pixels(frame)


def _pixels(frame: av.VideoFrame) -> Frames:
    return frame.to_ndarray(format="rgb24")  # type: ignore[return-value]  # of this format always uint8


def count_frames(path: Path) -> int:
    """Number of frames according to the video's index. Raises ConfigError without PyAV, and one of `write_errors()`."""
    return video_shape(path).num_frames


@dataclass(frozen=True)
class VideoShape:
    """What a file says of its video."""

    num_frames: int
    height: int
    width: int


def video_shape(path: Path) -> VideoShape:
    """According to the file's index; of a fragmented one, which has none, the frames are counted. Raises ConfigError
    without PyAV and for a file without a video, and one of `write_errors()`."""
    with av_library().open(str(path)) as container:
        if not container.streams.video:
            raise ConfigError(f"{named(path)} has no video in it")
        stream = container.streams.video[0]
        num_frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        return VideoShape(num_frames, stream.height, stream.width)
