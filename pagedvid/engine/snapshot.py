"""A video between two steps as plain data: what an engine with the same model and cache needs to go on with it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pagedvid.cache.stream_image import StreamImage
from pagedvid.engine.requests import VideoRequest


@dataclass(frozen=True, eq=False)
class JobSnapshot:
    """Axes: T tokens of a chunk in (frame, row, column) order, C latent channels."""

    request: VideoRequest
    """As it stands now: with the present prompt, seed and number of frames."""
    num_rounds_done: int
    num_frames_out: int
    """Latent frames that were decoded."""
    num_output_frames: int
    """Frames that were given out."""
    latents: dict[int, Tensor]
    """Of chunks in flight, [T, C] on the CPU, by chunk index."""
    clean: dict[int, Tensor]
    """Of finished chunks whose keys and values are kept, as they were stored; for storing them again."""
    held: dict[int, dict[str, Tensor]]
    """Predictions of earlier rounds by chunk and role that a later round uses."""
    decoder: dict[str, Tensor]
    """State of the video's decoder; empty for one without."""
    peak_bytes: tuple[int, int]
    """(Most bytes that its stream held, bytes of the same tokens as dense BF16.)"""
    image: StreamImage | None
    """Its stream; None: it has not begun."""
