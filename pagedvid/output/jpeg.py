"""One frame -> JPEG, through PyAV."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from pagedvid.output.mp4 import Frames, av_library

_QUALITY = 3
"""Of ffmpeg's scale from 2 (best) to 31."""


def jpeg(frame_HWC: Frames) -> bytes:
    """The frame, uint8 [height, width, 3], as a JPEG file. Raises ConfigError without PyAV."""
    library = av_library()
    encoder = library.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = frame_HWC.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
    encoder.qmin = encoder.qmax = _QUALITY
    encoder.thread_count = 1
    picture = library.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
    kinds = library.video.reformatter
    picture = picture.reformat(
        format="yuvj420p", dst_colorspace=kinds.Colorspace.ITU601, dst_color_range=kinds.ColorRange.JPEG
    )
    packets = [*encoder.encode(picture), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)
