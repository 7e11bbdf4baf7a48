"""From the image or video that a request names to the frames that its model goes on from.

    "image"            a picture: it stands still for one chunk
    "video"            its last frames, at the model's speed: as many whole chunks as the model's window keeps
    "start_seconds"    where in the given video the new one begins; left out: at its end
    "digest"           fingerprint of the file when it was asked for: another content is refused

A request keeps the name of the file until it is given to an engine, so that those that wait their turn are small.
Axes: N frames, of height H and width W.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pagedvid.engine.engine import Engine
from pagedvid.engine.protocol import PrefixFormat
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import GivenFramesError, StartTimeError
from pagedvid.files.fingerprint import fingerprint
from pagedvid.output.given_files import DIGEST, IMAGE, START, VIDEO, GivenPicture, given_pictures
from pagedvid.output.mp4 import Frames
from pagedvid.shown import named

_TOLERANCE_SECONDS = 1e-4
"""Times in files are rounded."""


def with_given_frames(request: VideoRequest, engine: Engine) -> VideoRequest:
    """The request with the frames of its image or video in the place of the file; one without is returned as it is.

    Raises GivenFramesError for a model that takes none, and for a file that has changed, cannot be read, is too short
    or has another size; StartTimeError where the time to start at leaves too little before it or is beyond the end.
    """
    name = next((name for name in (IMAGE, VIDEO) if name in request.inputs), None)
    if name is None:
        return request
    model, path = engine.model, Path(request.inputs[name])
    format = model.prefix_format(engine.window)
    if format is None:
        raise GivenFramesError(
            f'{model.name} takes no image or video file; leave "{name}" out. docs/models.md says what else it takes'
        )
    digest = request.inputs.get(DIGEST)
    if digest is not None and digest != fingerprint([path]):
        raise GivenFramesError(f"{named(path.name)} has changed since the video was asked for; ask for it again")
    start = request.inputs.get(START)
    frames_NHWC = _still(path, format) if name == IMAGE else _last_frames(path, format, start)
    others = {key: it for key, it in request.inputs.items() if key not in (IMAGE, VIDEO, START, DIGEST)}
    return replace(request, inputs={**others, "prefix": {"frames": torch.from_numpy(frames_NHWC)}})


def _still(path: Path, format: PrefixFormat) -> Frames:
    pictures = given_pictures(path, format.frames.height, format.frames.width)
    first = list(islice(pictures, 2))
    if len(first) != 1:
        held = "more than one picture" if first else "no picture"
        raise GivenFramesError(
            f"{named(path.name)} holds {held}; an image is one, the frames of a video are given as a video"
        )
    return np.repeat(first[0].pixels_HWC[None], format.num_frames(1), axis=0)


def _last_frames(path: Path, format: PrefixFormat, start_seconds: float | None) -> Frames:
    """[N, H, W, 3]: whole chunks that end at the start. At each frame's time the picture that a viewer sees then."""
    speed = format.frames.frames_per_second
    kept, end_seconds = _last_pictures(path, format, start_seconds)
    seconds_given = end_seconds - kept[0].seconds if kept else 0.0
    num_chunks = min(format.num_chunks(int((seconds_given + _TOLERANCE_SECONDS) * speed)), format.max_chunks)
    if num_chunks == 0:
        error = GivenFramesError if start_seconds is None else StartTimeError
        raise error(
            f"{named(path.name)} has {seconds_given:g} s before the new video begins; it takes the "
            f"{format.num_frames(1)} frames of a chunk, {format.num_frames(1) / speed:g} s"
        )
    num_frames = format.num_frames(num_chunks)
    frames, pictures = [], deque(kept)
    for number in range(num_frames):
        now = end_seconds - (num_frames - number) / speed + _TOLERANCE_SECONDS
        while len(pictures) > 1 and pictures[1].seconds <= now:
            pictures.popleft()
        frames.append(pictures[0].pixels_HWC)
    return np.stack(frames)


def _last_pictures(path: Path, format: PrefixFormat, start_seconds: float | None) -> tuple[deque[GivenPicture], float]:
    """(The pictures that may be needed, the time at which the new video begins)."""
    most_seconds = format.num_frames(format.max_chunks) / format.frames.frames_per_second
    kept, end_seconds = deque[GivenPicture](), 0.0
    for picture in given_pictures(path, format.frames.height, format.frames.width):
        if start_seconds is not None and picture.seconds > start_seconds - _TOLERANCE_SECONDS:
            return kept, start_seconds
        kept.append(picture)
        end_seconds = picture.end_seconds
        while len(kept) > 1 and kept[1].seconds <= picture.seconds - most_seconds:
            kept.popleft()
    if start_seconds is not None and start_seconds > end_seconds + _TOLERANCE_SECONDS:
        raise StartTimeError(
            f"start_seconds is {start_seconds:g}; {named(path.name)} ends at {end_seconds:g} s: give an earlier time"
        )
    return kept, end_seconds if start_seconds is None else start_seconds
