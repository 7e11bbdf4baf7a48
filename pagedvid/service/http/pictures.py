"""Pictures of a recorded video: one frame, or a sheet of frames from all of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pagedvid.output.jpeg import jpeg
from pagedvid.output.mp4 import Frames
from pagedvid.service.http.contract import SessionsLike

SHEET_COLUMNS, SHEET_ROWS = 4, 4
MAX_TILE_PIXELS = 320
"""Width of a frame on the sheet; larger ones are thinned out."""


def thumbnail(sessions: SessionsLike, id: str) -> bytes:
    """The frame in the middle of a recording that has chunks, as JPEG."""
    (frame,) = _spaced_frames(sessions, id, 1)
    return jpeg(frame)


def sprite_sheet(sessions: SessionsLike, id: str) -> bytes:
    """At most 16 evenly spaced frames of a recording that has chunks, in rows of four, as JPEG; the rest is black."""
    tiles = [_thinned(frame) for frame in _spaced_frames(sessions, id, SHEET_COLUMNS * SHEET_ROWS)]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % SHEET_COLUMNS)
    rows = [np.concatenate(tiles[at : at + SHEET_COLUMNS], axis=1) for at in range(0, len(tiles), SHEET_COLUMNS)]
    return jpeg(np.concatenate(rows, axis=0))


def _spaced_frames(sessions: SessionsLike, id: str, most: int) -> Iterator[Frames]:
    """Frames in the middle of equal parts of the video, uint8 [height, width, 3]; no chunk is decoded twice."""
    chunks = sessions.recording(id).chunks
    num_frames = sum(chunk.num_frames for chunk in chunks)
    number = min(most, num_frames)
    wanted = [(2 * part + 1) * num_frames // (2 * number) for part in range(number)]
    for chunk in chunks:
        inside = [index - chunk.first_frame for index in wanted if 0 <= index - chunk.first_frame < chunk.num_frames]
        if inside:
            frames = sessions.frames(id, chunk.index)
            yield from (frames[index] for index in inside)


def _thinned(frame_HWC: Frames) -> Frames:
    every = -(-frame_HWC.shape[1] // MAX_TILE_PIXELS)
    return frame_HWC[::every, ::every]
