"""Pictures and videos from outside: their first bytes say what they are, and only a few kinds are accepted, so that no
file can make the library open other files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from pagedvid.errors import GivenFramesError
from pagedvid.output.mp4 import Frames, av_library, write_errors
from pagedvid.shown import named

IMAGE, VIDEO, START, DIGEST = "image", "video", "start_seconds", "digest"
"""Inputs of a request that goes on from given frames; given_frames.py says what they mean."""

MOST_START_SECONDS = 1_000_000
KINDS = "PNG, JPEG, WebP (pictures) and mp4 (videos)"
MOVIE = "mov"
"""The library's word for mp4 files; the others are pictures."""
_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "png_pipe"),
    (0, b"\xff\xd8\xff", "jpeg_pipe"),
    (8, b"WEBP", "webp_pipe"),
    (4, b"ftyp", MOVIE),
)
"""(Place, bytes there, the library's word for such a file)."""
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
"""AVIF and HEIC begin as mp4 does, and would be videos of one picture."""
SIGNATURE_BYTES = 12
MAX_SCALE = 16
"""Most times that a given frame may be as high and wide as the model's."""
MOST_PIXELS = 100_000_000
"""Of a picture that is decoded: a small file can hold a picture that fills the memory."""


@dataclass(frozen=True)
class GivenPicture:
    """One picture of a file."""

    seconds: float
    """Since the first picture."""
    end_seconds: float
    """When the next one is due."""
    pixels_HWC: Frames


def goes_on(inputs: Mapping[str, Any]) -> bool:
    """Whether the inputs of a request name frames that its video goes on from."""
    return IMAGE in inputs or VIDEO in inputs


def file_kind(beginning: bytes) -> str | None:
    """The library's word for a file that begins so (`SIGNATURE_BYTES`); None: its kind is not accepted."""
    for place, signature, kind in _SIGNATURES:
        if beginning[place:].startswith(signature):
            return None if beginning[8:12] in _PICTURE_BRANDS else kind
    return None


def given_pictures(path: Path, height: int, width: int) -> Iterator[GivenPicture]:
    """The pictures of a file in order, in a size of `height` x `width`.

    A file may have a whole multiple of this size, which is reduced by averaging; transparent pixels are shown over
    black. Raises GivenFramesError for another size, a file of another kind and one that cannot be read.
    """
    try:
        with path.open("rb") as file:
            kind = file_kind(file.read(SIGNATURE_BYTES))
        if kind is None:
            raise GivenFramesError(f"{named(path.name)} is none of {KINDS}")
        yield from _pictures(path, kind, height, width)
    except write_errors() as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def _pictures(path: Path, kind: str, height: int, width: int) -> Iterator[GivenPicture]:
    limits = None if kind == MOVIE else {"max_pixels": str(MOST_PIXELS)}
    how = {"format": kind, "stream_options": limits and [limits], "metadata_errors": "replace"}
    with av_library().open(str(path), **how) as container:
        if not container.streams.video:
            raise GivenFramesError(f"{named(path.name)} has no picture in it")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise _unreadable(path, "its pictures are coded in an unknown way")
        if not (stream.height and stream.width):
            raise _unreadable(
                path, f"it is cut short or animated, or its pictures have more than {MOST_PIXELS:,} pixels"
            )
        # Otherwise whatever is missing of a picture would be made up.
        stream.codec_context.options = {"err_detect": "explode", **(limits or {})}
        interval = float(1 / stream.average_rate) if stream.average_rate else 1.0
        first: float | None = None
        size: tuple[int, ...] | None = None
        for number, frame in zip(count(), container.decode(stream), strict=False):
            pixels = _upright(frame)
            size = pixels.shape if size is None else size
            if pixels.shape != size:
                raise _unreadable(path, "its pictures differ in size")
            scale = _scale(path, size[:2], (height, width))
            seconds = number * interval if frame.time is None else frame.time
            first = seconds if first is None else first
            begin = seconds - first
            yield GivenPicture(begin, begin + interval, _reduced(pixels, scale))


def _unreadable(path: Path, reason: str) -> GivenFramesError:
    return GivenFramesError(f"{named(path.name)} cannot be read ({reason}); give a whole file of {KINDS}")


def _upright(frame: Any) -> Frames:
    """Its pixels, rotated as the file says: cameras store what they see sideways, and note it."""
    return np.rot90(_opaque(frame), round(frame.rotation / 90))


def _opaque(frame: Any) -> Frames:
    """Its pixels over black: what is transparent often has another color, which nobody was meant to see."""
    if frame.format.name != "pal8" and not any(part.is_alpha for part in frame.format.components):
        return frame.to_ndarray(format="rgb24")
    pixels_HWC = frame.to_ndarray(format="rgba").astype(np.float32)
    return (pixels_HWC[..., :3] * (pixels_HWC[..., 3:] / 255)).round().astype(np.uint8)


def _scale(path: Path, found: tuple[int, ...], wanted: tuple[int, int]) -> int:
    scale = found[0] // wanted[0]
    if found != (scale * wanted[0], scale * wanted[1]) or not 1 <= scale <= MAX_SCALE:
        raise GivenFramesError(
            f"{named(path.name)} has {found[1]} x {found[0]} pixels (width x height); allowed are {wanted[1]} x "
            f"{wanted[0]} and up to {MAX_SCALE} times that on both sides: crop or resize it"
        )
    return scale


def _reduced(pixels_HWC: Frames, scale: int) -> Frames:
    """Every `scale` x `scale` pixels as their average."""
    if scale == 1:
        return pixels_HWC
    height, width = (side // scale for side in pixels_HWC.shape[:2])
    blocks = pixels_HWC.reshape(height, scale, width, scale, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)
