"""Frames -> mp4 (H.264, yuv420p) and back, through PyAV. The only file that imports `av`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from pagedvid.output.atomic import publish, temporary_path

AV_VERSION: str = av.__version__
WRITE_ERRORS = (OSError, av.FFmpegError)
"""What writing a video can raise: the disk is full, the folder is gone, the encoder refuses."""

_BT709 = 1
_QUALITY: dict[str, object] = {"crf": "16", "preset": "medium", "rc-lookahead": "10"}
"""Fine enough to keep plain colours; a short look-ahead, because every running video holds its frames in memory."""

Frames = NDArray[np.uint8]


def enlarge(frames_FHWC: Frames, scale: int) -> Frames:
    """Every pixel `scale` times as wide and high; one more edge row or column where H.264 needs an even size."""
    frames = frames_FHWC.repeat(scale, axis=1).repeat(scale, axis=2)
    odd_rows, odd_columns = frames.shape[1] % 2, frames.shape[2] % 2
    if odd_rows or odd_columns:
        frames = np.pad(frames, ((0, 0), (0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
    return frames


class VideoWriter:
    """Streams frames into a temporary file beside `path`; `publish` moves it there once it is whole."""

    def __init__(self, path: Path, frames_per_second: float, scale: int) -> None:
        self.path = path
        self.num_frames = 0
        self._scale = scale
        self._container = av.open(str(temporary_path(path)), "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1001))
        self._is_open = True

    def add(self, frames_FHWC: Frames) -> None:
        """Appends frames, uint8 [frames, height, width, 3]. Raises one of `WRITE_ERRORS`."""
        frames = enlarge(frames_FHWC, self._scale)
        if self.num_frames == 0:
            self._configure(height=frames.shape[1], width=frames.shape[2])
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            picture.pts = self.num_frames
            self._container.mux(self._stream.encode(picture))
            self.num_frames += 1

    def _configure(self, height: int, width: int) -> None:
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = _QUALITY
        context = self._stream.codec_context
        context.thread_count = 1  # the model's threads are busy; one is plenty for the encoder
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG

    def finish(self) -> None:
        """Writes what is left and the index: the temporary file is whole. Raises one of `WRITE_ERRORS`."""
        self._container.mux(self._stream.encode(None))
        self._is_open = False
        self._container.close()

    def publish(self) -> None:
        """Moves the finished video to its name. Raises OSError."""
        publish(self.path)

    def discard(self) -> None:
        """Removes what was written, unless it was published."""
        if self._is_open:
            self._is_open = False
            # Closing writes the index of a file that is removed right after: that this may fail changes nothing.
            with suppress(*WRITE_ERRORS):
                self._container.close()
        temporary_path(self.path).unlink(missing_ok=True)


def read_frames(path: Path, indices: Sequence[int] | None = None) -> list[Frames]:
    """Decoded frames of a video, each uint8 [height, width, 3]: all of them, or those at ascending `indices`."""
    wanted = None if indices is None else set(indices)
    with av.open(str(path)) as container:
        return [
            frame.to_ndarray(format="rgb24")
            for index, frame in enumerate(container.decode(video=0))
            if wanted is None or index in wanted
        ]


def count_frames(path: Path) -> int:
    """Number of frames that the video's index names."""
    with av.open(str(path)) as container:
        return container.streams.video[0].frames
