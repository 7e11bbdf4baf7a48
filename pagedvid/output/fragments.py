"""Chunks -> a fragmented mp4 that can be played while it grows.

A file is one init segment and then one fragment per chunk. Each fragment is encoded by itself and begins with a key
frame, so nothing has to be remembered from chunk to chunk: a file may be cut after any fragment, a fork copies the
bytes of its source's fragments, and a player may start at any of them.

    init segment   ftyp moov    size, speed and decoder settings; no frames
    fragment       moof mdat    the time of its first frame, a sequence number, the frames
"""

from __future__ import annotations

import io
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pagedvid.files.atomic import replacing
from pagedvid.output.mp4 import Frames, av_library, configure, enlarge, pictures

_MOVFLAGS = "empty_moov+default_base_moof+frag_custom+skip_trailer"
"""frag_custom: all packets of a container become one fragment. skip_trailer: no index at the end, because another
fragment may follow."""
_HEADER_BYTES = 8
"""Length and name of a box."""
_QUALITY = {"crf": "16", "preset": "veryfast", "bf": "0", "rc-lookahead": "0"}
"""Fine enough to keep plain colours, and fast, because viewers wait. Without B-frames a frame is shown when it is
decoded, so that fragments join without gaps. x264 looks ahead for the sake of a few bytes, and reads memory beyond the
edges of small frames then: once in a thousand times the same frames give other bytes."""


@lru_cache(maxsize=16)
def init_segment(height: int, width: int, rate: Fraction, scale: int = 1) -> bytes:
    """The beginning of a file of frames of this size. `rate`: as `mp4.frame_rate` gives it.

    Raises one of `mp4.write_errors()`, and ConfigError without PyAV.
    """
    content, _ = _encoded(np.zeros((1, height, width, 3), np.uint8), rate, 1, scale)
    return content[: _find(content, b"moof")]


def fragment(frames_FHWC: Frames, first_frame: int, rate: Fraction, sequence: int, scale: int = 1) -> bytes:
    """The fragment of a chunk, uint8 [frames, height, width, 3] with at least one frame; see `init_segment`.

    `first_frame`: number of frames before it in the video. `sequence`: its number in the file, from 1.
    """
    content, frame_ticks = _encoded(frames_FHWC, rate, sequence, scale)
    moved = bytearray(content[_find(content, b"moof") :])
    # The library lets every file begin at 0. tfdt: four bytes of version, then the time of the first frame.
    start = _find(moved, b"moof", b"traf", b"tfdt") + _HEADER_BYTES + 4
    moved[start : start + 8] = (first_frame * frame_ticks).to_bytes(8, "big")
    return bytes(moved)


def decoded(init: bytes, fragments: bytes) -> Frames:
    """The frames of an init segment and fragments of its file, uint8 [frames, height, width, 3]."""
    with av_library().open(io.BytesIO(init + fragments), format="mp4") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_whole(source: Path, num_bytes: int, path: Path) -> None:
    """Writes the first `num_bytes` of a fragmented file, which end with a fragment, as an ordinary mp4 file.

    Its index is in front, and no frame is encoded again. Raises one of `mp4.write_errors()`.
    """
    library = av_library()
    with source.open("rb") as file, replacing(path) as temporary:
        content = io.BytesIO(file.read(num_bytes))
        with (
            library.open(content, format="mp4") as container,
            library.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as whole,
        ):
            stream = whole.add_stream_from_template(container.streams.video[0])
            for packet in container.demux(video=0):
                if packet.dts is not None:  # the last, empty one ends the stream
                    packet.stream = stream
                    whole.mux(packet)


def _encoded(frames_FHWC: Frames, rate: Fraction, sequence: int, scale: int) -> tuple[bytes, int]:
    """A file of one init segment and one fragment that begins at 0, and how many of its ticks a frame lasts."""
    frames = enlarge(frames_FHWC, scale)
    content = io.BytesIO()
    options = {"movflags": _MOVFLAGS, "fragment_index": str(sequence)}
    with av_library().open(content, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=rate)
        configure(stream, frames.shape[1], frames.shape[2], _QUALITY)
        for number, picture in enumerate(pictures(frames)):
            picture.pts = number
            _mux(container, stream, picture)
        _mux(container, stream, None)
        frame_ticks = 1 / (rate * stream.time_base)
    return content.getvalue(), int(frame_ticks)


def _mux(container: Any, stream: Any, picture: Any) -> None:
    for packet in stream.encode(picture):
        packet.duration = 1  # in frames; otherwise the last frame of a fragment would have none
        container.mux(packet)


def _find(content: bytes | bytearray, *names: bytes) -> int:
    """Where a box starts. `names`: the boxes around it from the outermost on, then its own.

    A box is four bytes of length, four of name, and its content.
    """
    start = 0
    while content[start + 4 : start + _HEADER_BYTES] != names[0]:
        start += int.from_bytes(content[start : start + 4], "big")
        if start >= len(content):
            raise OSError(f"the library wrote a fragment without {names[0].decode()}; use PyAV 17")
    if len(names) == 1:
        return start
    inside = start + _HEADER_BYTES
    return inside + _find(content[inside:], *names[1:])
